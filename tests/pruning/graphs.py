"""Random networks to prune, and their masks applied by hand."""

import keras
import numpy as np
from keras import layers, ops

import bayesnorm

MASKED = (
    layers.Dense,
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv2DTranspose,
    layers.DepthwiseConv2D,
    layers.SeparableConv2D,
    layers.BatchNormalization,
    bayesnorm.ScaleNorm,
)
_ACTIVATIONS = ("relu", "tanh", "sigmoid", "swish", "relu6", None, "elu", "gelu")


class _Maker:
    """Makes random layers on images and vectors."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def pick(self, values):
        return values[self.rng.integers(len(values))]

    def bias(self):
        return bool(self.rng.random() < 0.7)

    def conv(self, x, units=None):
        units = units or int(self.rng.integers(3, 9))
        small = min(x.shape[1:3]) < 5
        return layers.Conv2D(
            units,
            self.pick((1, 3)) if not small else 1,
            strides=1,
            padding=self.pick(("same", "valid")),
            use_bias=self.bias(),
            activation=self.pick(_ACTIVATIONS),
        )(x)

    def grouped(self, x):
        if x.shape[-1] % 2:
            return x
        return layers.Conv2D(8, 1, groups=2, activation="relu")(x)

    def as_depthwise(self, x):
        channels = x.shape[-1]
        return layers.Conv2D(channels, 3, padding="same", groups=channels)(x)

    def depthwise(self, x):
        return layers.DepthwiseConv2D(
            3,
            padding="same",
            depth_multiplier=self.pick((1, 1, 2)),
            use_bias=self.bias(),
            activation=self.pick(_ACTIVATIONS),
        )(x)

    def separable(self, x):
        return layers.SeparableConv2D(
            5,
            3,
            padding="same",
            depth_multiplier=self.pick((1, 2)),
            use_bias=self.bias(),
        )(x)

    def transposed(self, x):
        if max(x.shape[1:3]) > 12:
            return x
        return layers.Conv2DTranspose(
            5, self.pick((2, 3)), strides=self.pick((1, 2)), padding="same"
        )(x)

    def norm(self, x):
        return layers.BatchNormalization(
            scale=self.bias(), center=self.bias(), **self.pick(({}, {"axis": 3}))
        )(x)

    def scale(self, x):
        kinds = bayesnorm.ScaleNorm, bayesnorm.StochasticScaleNorm
        return self.pick(kinds)()(x)

    def wrapped(self, x):
        return bayesnorm.WeightNormalization(
            layers.Conv2D(5, 1),
            use_bias=self.bias(),
            activation=self.pick(_ACTIVATIONS),
        )(x)

    def analytic(self, x):
        return bayesnorm.AnalyticNormalization(
            layers.Conv2D(5, 3, padding="same"), input_mean=0.1, input_variance=1.2
        )(x)

    def pruning(self, x):
        return bayesnorm.StructuredBayesianPruning(use_bias=self.bias())(x)

    def activation(self, x):
        kinds = (
            layers.PReLU(shared_axes=[1, 2]),
            layers.LeakyReLU(),
            layers.Activation("softplus"),
            layers.ReLU(6.0),
            layers.Activation("softmax"),
        )
        return self.pick(kinds)(x)

    def position(self, x):
        small = min(x.shape[1:3]) < 4
        kinds = [
            layers.ZeroPadding2D(1),
            layers.Dropout(0.3),
            layers.Permute((2, 1, 3)),
        ]
        if max(x.shape[1:3]) < 12:
            kinds += [
                layers.UpSampling2D(2),
                layers.UpSampling2D(2, interpolation="bilinear"),
            ]
        if not small:
            kinds += [layers.MaxPooling2D(2, padding="same"), layers.Cropping2D(1)]
            kinds += [layers.AveragePooling2D(2, padding="same")]
        return self.pick(kinds)(x)

    def residual(self, x):
        y = layers.Conv2D(x.shape[-1], 3, padding="same")(x)
        y = layers.Activation("relu")(y)
        if self.rng.random() < 0.3:
            y = layers.Conv2D(x.shape[-1], 1)(y)
        kinds = layers.Add(), layers.Average(), layers.Maximum(), layers.Subtract()
        return self.pick(kinds)([x, y])

    def sum_of_operations(self, x):
        y = layers.Conv2D(x.shape[-1], 1)(x)
        return self.pick((ops.add, ops.multiply, ops.maximum))(x, ops.relu(y))

    def concatenated(self, x):
        y = layers.Conv2D(3, 1, activation="relu")(x)
        return layers.Concatenate()(self.pick(([x, y], [x, x], [y, x, y])))

    def gated(self, x):
        gate = layers.GlobalAveragePooling2D(keepdims=self.bias())(x)
        if len(gate.shape) == 2:
            gate = layers.Dense(3, activation="relu")(gate)
            gate = layers.Dense(x.shape[-1], activation="sigmoid")(gate)
            gate = layers.Reshape((1, 1, x.shape[-1]))(gate)
        else:
            gate = layers.Conv2D(x.shape[-1], 1, activation="sigmoid")(gate)
        return layers.Multiply()(self.pick(([x, gate], [gate, x])))

    def attended(self, x):
        """A map of positions that meets all channels."""
        gate = layers.Conv2D(1, 3, padding="same", activation="sigmoid")(x)
        return layers.Multiply()([x, gate])

    def arithmetic(self, x):
        return self.pick(
            (
                lambda: x * 2.0 + 0.5,
                lambda: ops.relu6(x + 3.0) * (1.0 / 6.0) * x,
                lambda: 1.0 - x,
                lambda: ops.square(x),
                lambda: layers.Rescaling(
                    list(self.rng.normal(size=x.shape[-1])), offset=0.3
                )(x),
            )
        )()

    def shared(self, x):
        layer = layers.Conv2D(x.shape[-1], 3, padding="same", activation="relu")
        return layer(layer(x))

    def nested(self, x):
        inputs = keras.Input(x.shape[1:])
        y = layers.Conv2D(x.shape[-1], 3, padding="same", activation="relu")(inputs)
        y = layers.BatchNormalization()(layers.Conv2D(x.shape[-1], 1)(y))
        model = keras.Model(inputs, y)
        y = model(x)
        return model(y) if self.bias() else y

    def opaque(self, x):
        kinds = (
            layers.LayerNormalization(),
            layers.GroupNormalization(1),
            layers.Lambda(lambda x: x[..., ::-1]),
        )
        return self.pick(kinds)(x)

    def shuffled(self, x):
        h, w, c = x.shape[1:]
        if c % 2:
            return x
        x = layers.Permute((1, 2, 4, 3))(layers.Reshape((h, w, 2, c // 2))(x))
        return layers.Reshape((h, w, c))(x)

    def sequence(self, x):
        h, w, c = x.shape[1:]
        y = ops.reshape(x, (-1, h * w, c))
        y = layers.Conv1D(c, 3, padding=self.pick(("causal", "same")))(y)
        return layers.Reshape((h, w, c))(y)

    def to_vector(self, x):
        kinds = (
            layers.Flatten(),
            layers.GlobalAveragePooling2D(),
            layers.GlobalMaxPooling2D(),
        )
        return self.pick(kinds)(x)

    def of_vector(self, x):
        units = int(self.rng.integers(4, 9))
        x = layers.Dense(units, self.pick(_ACTIVATIONS), use_bias=self.bias())(x)
        kind = self.rng.integers(5)
        if kind == 0:
            return layers.Add()([x, layers.Dense(units)(x)])
        if kind == 1:
            return layers.Flatten()(
                layers.Conv2D(3, 1)(layers.Reshape((2, 2, 4))(layers.Dense(16)(x)))
            )
        if kind == 2:
            return layers.BatchNormalization()(x)
        if kind == 3:
            return bayesnorm.StructuredBayesianPruning(use_bias=False)(x)
        return x


# How often each is drawn.
_KINDS = {
    "conv": 3,
    "norm": 2,
    "grouped": 1,
    "as_depthwise": 1,
    "depthwise": 2,
    "separable": 1,
    "transposed": 1,
    "scale": 1,
    "wrapped": 1,
    "analytic": 1,
    "pruning": 1,
    "activation": 1,
    "position": 2,
    "residual": 2,
    "sum_of_operations": 1,
    "concatenated": 1,
    "gated": 1,
    "attended": 1,
    "arithmetic": 1,
    "shared": 1,
    "nested": 1,
    "opaque": 1,
    "shuffled": 1,
    "sequence": 1,
}


def make(seed):
    """Returns a random network, and booleans by the name of a layer."""
    keras.utils.set_random_seed(seed)
    maker = _Maker(seed)
    rng = maker.rng
    x = inputs = keras.Input((8, 8, int(rng.integers(2, 5))))
    x = maker.conv(x)
    for _ in range(rng.integers(2, 8)):
        if x.shape[-1] > 24:
            x = maker.conv(x)
        kind = maker.pick([k for k, count in _KINDS.items() for _ in range(count)])
        x = getattr(maker, kind)(x)
    middle = x
    x = maker.of_vector(maker.to_vector(x))
    outputs = [layers.Dense(3)(x)]
    if rng.random() < 0.3:
        outputs.append(layers.Conv2D(2, 1)(middle))
    model = keras.Model(inputs, outputs[0] if len(outputs) == 1 else outputs)
    _randomize(model, rng)
    return model, _masks(model, rng)


def _layers(model):
    found = model._flatten_layers(include_self=False)
    return [x for x in found if not isinstance(x, keras.Model)]


def _randomize(model, rng):
    for layer in _layers(model):
        if isinstance(layer, bayesnorm.StructuredBayesianPruning):
            layer.mean.assign(rng.uniform(-6, 0, layer.mean.shape))
            layer.log_stddev.assign(rng.uniform(-4, 1.5, layer.mean.shape))
        for v in layer.weights:
            if v.name.endswith("variance"):
                v.assign(rng.uniform(0.5, 1.5, v.shape))
            elif "bias" in v.name or v.name in ("beta", "moving_mean", "alpha"):
                # Some are 0, such as a ReLU gives.
                v.assign(rng.normal(size=v.shape) * rng.integers(0, 2))
            elif v.name == "gamma":
                v.assign(rng.normal(size=v.shape))


def _masks(model, rng):
    wrapped = {id(x.layer) for x in _layers(model) if hasattr(x, "layer")}
    masks = {}
    for layer in _layers(model):
        if not isinstance(layer, MASKED) or id(layer) in wrapped or rng.random() < 0.3:
            continue
        if isinstance(layer, bayesnorm.StructuredBayesianPruning):
            continue
        share = rng.choice((0.2, 0.5, 0.8, 1.0), p=(0.4, 0.4, 0.15, 0.05))
        masks[layer.name] = rng.random(_size(layer)) >= share
    return masks


def _size(layer):
    if isinstance(layer, layers.DepthwiseConv2D):
        return int(np.prod(layer.kernel.shape[-2:]))
    if isinstance(layer, layers.Conv2DTranspose):
        return layer.kernel.shape[-2]
    if isinstance(layer, layers.SeparableConv2D):
        return layer.pointwise_kernel.shape[-1]
    if isinstance(layer, layers.BatchNormalization):
        return layer.moving_mean.shape[0]
    if isinstance(layer, bayesnorm.ScaleNorm):
        return layer.scale.shape[0]
    return layer.kernel.shape[-1]


def mask_by_hand(model, masks):
    """Zeroes in the weights of a model what its masks leave out."""
    for layer in _layers(model):
        if layer.name not in masks:
            continue
        mask = masks[layer.name].astype("float32")
        if isinstance(layer, layers.BatchNormalization):
            if layer.scale:
                layer.gamma.assign(layer.gamma * mask)
            else:  # (x - mean) / deviation is 0 at x = mean, which the layer has not.
                layer.moving_variance.assign(
                    np.where(mask, layer.moving_variance, np.inf)
                )
        elif isinstance(layer, bayesnorm.ScaleNorm):
            layer.scale.assign(layer.scale * mask)
        elif isinstance(layer, layers.SeparableConv2D):
            layer.pointwise_kernel.assign(layer.pointwise_kernel * mask)
        elif isinstance(layer, layers.DepthwiseConv2D):
            shape = layer.kernel.shape[-2:]
            layer.kernel.assign(layer.kernel * mask.reshape(shape))
        elif isinstance(layer, layers.Conv2DTranspose):
            layer.kernel.assign(layer.kernel * mask[:, None])
        else:
            layer.kernel.assign(layer.kernel * mask)
