"""Rules of what acts in training: augmentation, dropout, noise."""

from keras import layers, ops

from bayesnorm.maths.activations import SELU_LIMIT
from bayesnorm.moments.registry import register


def _identity(layer, moments):
    return moments


for _layer in (
    layers.InputLayer,
    layers.Identity,
    layers.ActivityRegularization,
    layers.Masking,
    layers.AugMix,
    layers.AutoContrast,
    layers.CutMix,
    layers.MixUp,
    layers.RandAugment,
    layers.RandomBrightness,
    layers.RandomColorDegeneration,
    layers.RandomColorJitter,
    layers.RandomContrast,
    layers.RandomElasticTransform,
    layers.RandomErasing,
    layers.RandomFlip,
    layers.RandomGaussianBlur,
    layers.RandomGrayscale,
    layers.RandomHue,
    layers.RandomInvert,
    layers.RandomPerspective,
    layers.RandomPosterization,
    layers.RandomRotation,
    layers.RandomSaturation,
    layers.RandomSharpness,
    layers.RandomShear,
    layers.RandomTranslation,
    layers.RandomZoom,
):
    # Augmentation does nothing at inference.
    register(_layer, accepts_unknown=True)(_identity)


# --- noise -----------------------------------------------------------------------


def _dropout(layer, moments):
    if not moments.stationary or not layer.rate:
        return moments
    rate = layer.rate
    variance = moments.variance + rate * ops.square(moments.mean)
    return moments.replace(mean=moments.mean, variance=variance / (1.0 - rate))


for _layer in (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
):
    register(_layer)(_dropout)


@register(layers.GaussianNoise)
def _gaussian_noise(layer, moments):
    if not moments.stationary:
        return moments
    return moments.replace(variance=moments.variance + layer.stddev**2)


@register(layers.AlphaDropout)
def _alpha_dropout(layer, moments):
    if not moments.stationary or not layer.rate:
        return moments
    rate, low = layer.rate, SELU_LIMIT
    scale = ((1.0 - rate) * (1.0 + rate * low**2)) ** -0.5
    kept = 1.0 - rate
    spread = kept * moments.variance + kept * rate * ops.square(moments.mean - low)
    mean = kept * moments.mean + rate * low - low * rate
    return moments.replace(mean=scale * mean, variance=scale**2 * spread)
