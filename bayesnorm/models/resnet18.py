"""ResNet-18 for small images."""

import keras

from bayesnorm.models.blocks import NormalizedBlocks, image_inputs, scaled_widths

_WIDTHS = (64, 128, 256, 512)
_BLOCKS = 2


def resnet18(
    input_shape=(32, 32, 3),
    num_classes=10,
    norm="batch",
    scale="plain",
    projection=False,
    width=1.0,
    input_mean=None,
    input_variance=None,
    seed=None,
    **scale_arguments,
):
    """Builds ResNet-18 in the form for images of 32 pixels.

    A 3x3 convolution of 64 filters, then four stages of two residual blocks of two 3x3
    convolutions, widths 64, 128, 256, 512, the map halved at the start of stages two to
    four; global average pooling, dense. A normalization after every convolution; a ReLU
    after the first of a block and after its sum. Where the shape changes, the shortcut
    is a normalized 1x1 convolution.

    Args:
        input_shape: `(height, width, channels)`.
        num_classes: Number of classes.
        norm: None, `"batch"`, `"stochastic_batch"`, `"weight"` or `"analytic"`.
        scale: `"plain"`, `"noisy"` or `"stochastic"`.
        projection: Whether kernels are projected on `||w|| = 1`.
        width: Factor of the widths.
        input_mean: Per-channel mean of the images; None to take them as they come, as
            in the paper.
        input_variance: Per-channel variance of the images.
        seed: Integer, seed of the initial weights and of the noise.
        **scale_arguments: Arguments of `StochasticScaleNorm` or `NoisyScaleNorm`; the
            latter's deviations may be lists, an entry for each layer.

    Returns:
        A Functional model, images `[batch, height, width, channels]` to logits
        `[batch, classes]`.

    Raises:
        ValueError: If an argument is not as above.

    Reference:
        Atanov et al., 2018, "Uncertainty Estimation via Stochastic Batch
        Normalization", section 4; He et al., 2016, "Deep Residual Learning for Image
        Recognition".
    """
    block = NormalizedBlocks(norm, scale, projection, seed, scale_arguments)
    widths = scaled_widths(_WIDTHS, width)

    def convolution(x, filters, kernel, stride, name):
        return block(
            x,
            keras.layers.Conv2D,
            filters,
            kernel,
            strides=stride,
            padding="same",
            name=name,
        )

    inputs, x = image_inputs(input_shape, input_mean, input_variance)
    x = block.activation(convolution(x, widths[0], 3, 1, "conv"), 0, "conv")
    for i, filters in enumerate(widths):
        for j in range(_BLOCKS):
            name, stride = f"block{i}_{j}", 2 if i and not j else 1
            shortcut = x
            if stride > 1 or x.shape[-1] != filters:
                shortcut = convolution(x, filters, 1, stride, f"{name}_shortcut")
            x = convolution(x, filters, 3, stride, f"{name}_conv0")
            x = block.activation(x, 0, f"{name}_conv0")
            x = convolution(x, filters, 3, 1, f"{name}_conv1")
            x = keras.layers.Add(name=f"{name}_sum")([x, shortcut])
            x = block.activation(x, 0, name)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return block.model(inputs, block.classifier(x, num_classes), "resnet18")
