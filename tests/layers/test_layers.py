"""The normalization layers against the papers' equations."""

import keras
import numpy as np
import pytest
from keras import ops

import bayesnorm
from bayesnorm.layers.kernels import filter_norms, output_kernel

L = keras.layers


def _gradients(model, loss, variables):
    """Gradients of `loss(outputs of the model)`, on either backend."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss(model)
        return [g.numpy() for g in tape.gradient(value, [v.value for v in variables])]
    import jax

    def of_values(values):
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return loss(model)

    return [np.asarray(g) for g in jax.grad(of_values)([v.value for v in variables])]


LAYERS = {
    "dense": (lambda: L.Dense(4), (7,)),
    "conv2d": (lambda: L.Conv2D(4, 3, padding="same"), (6, 6, 3)),
    "depthwise": (lambda: L.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 3)),
    "separable": (lambda: L.SeparableConv2D(4, 3, depth_multiplier=2), (6, 6, 3)),
    "transposed": (lambda: L.Conv2DTranspose(4, 3, strides=2), (4, 4, 3)),
}


@pytest.fixture(params=LAYERS, ids=list(LAYERS))
def linear(request):
    factory, shape = LAYERS[request.param]
    return factory, shape


def _model(layer, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


def test_weight_norm_is_the_layer_over_the_norm_of_its_filters(linear, rng):
    """The norm is measured on the linear map itself, by its impulse responses."""
    factory, shape = linear
    layer = bayesnorm.WeightNormalization(factory())
    model = _model(layer, shape)
    x = rng.normal(size=(3, *shape)).astype("float32")
    plain = ops.convert_to_numpy(layer.layer(x))
    norms = ops.convert_to_numpy(filter_norms(layer.layer))
    y = ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(y, plain / norms, rtol=1e-5, atol=1e-6)
    # The responses to all unit impulses at the input, read at one output position
    # that the border does not touch, are the filter's elements.
    size = int(np.prod(shape))
    impulses = np.eye(size, dtype="float32").reshape(size, *shape)
    responses = ops.convert_to_numpy(layer.layer(impulses))
    if "Transpose" in type(layer.layer).__name__:
        # There each input position sends out the whole filter, once per channel.
        middle = impulses.reshape(-1, shape[-1], *shape)[5]
        energy = np.square(ops.convert_to_numpy(layer.layer(middle))).sum((0, 1, 2))
    elif len(shape) == 1:
        energy = np.square(responses).sum(0)
    else:
        energy = np.square(responses[:, 2, 2]).sum(0)
    np.testing.assert_allclose(norms, np.sqrt(energy), rtol=1e-5)


@pytest.mark.parametrize("kind", ["weight", "analytic"])
def test_output_does_not_depend_on_the_kernels_scale(linear, kind, rng):
    factory, shape = linear
    wrapper = {
        "weight": bayesnorm.WeightNormalization,
        "analytic": bayesnorm.AnalyticNormalization,
    }[kind]
    layer = wrapper(factory())
    model = _model(layer, shape)
    x = rng.normal(size=(3, *shape)).astype("float32")
    before = ops.convert_to_numpy(model(x))
    kernel, broadcast = output_kernel(layer.layer)
    factors = rng.uniform(0.1, 10, size=ops.shape(filter_norms(layer.layer)))
    kernel.assign(kernel * np.reshape(factors, broadcast).astype("float32"))
    np.testing.assert_allclose(
        ops.convert_to_numpy(model(x)), before, rtol=2e-4, atol=2e-5
    )


@pytest.mark.parametrize("kind", ["weight", "analytic"])
def test_gradient_is_orthogonal_to_each_filter(kind, rng):
    """SN section 2: the output is 0-homogeneous in w, so w . dL/dw = 0."""
    wrapper = {
        "weight": bayesnorm.WeightNormalization,
        "analytic": bayesnorm.AnalyticNormalization,
    }[kind]
    layer = wrapper(L.Conv2D(4, 3, padding="same"))
    model = _model(layer, (6, 6, 3))
    x = rng.normal(size=(3, 6, 6, 3)).astype("float32")
    target = rng.normal(size=(3, 6, 6, 4)).astype("float32")
    kernel = layer.layer.kernel
    (gradient,) = _gradients(
        model, lambda m: ops.sum(ops.square(m(x) - target)), [kernel]
    )
    w = ops.convert_to_numpy(kernel)
    along = (w * gradient).sum((0, 1, 2))
    across = np.sqrt(np.square(w).sum((0, 1, 2)) * np.square(gradient).sum((0, 1, 2)))
    assert (across > 1).all()
    np.testing.assert_allclose(along / across, 0, atol=1e-5)


def test_weight_norm_gradient_is_equation_3_of_salimans_and_kingma(rng):
    """dL/dw = (I - v v^T) dL/dv / ||w||, v = w / ||w||."""
    layer = bayesnorm.WeightNormalization(L.Dense(4))
    model = _model(layer, (7,))
    x = rng.normal(size=(5, 7)).astype("float32")
    target = rng.normal(size=(5, 4)).astype("float32")
    kernel = layer.layer.kernel
    (gradient,) = _gradients(
        model, lambda m: ops.sum(ops.square(m(x) - target)) / 2, [kernel]
    )
    w = ops.convert_to_numpy(kernel).astype("float64")
    norm = np.linalg.norm(w, axis=0)
    v = w / norm
    of_v = x.T @ (x @ v - target)
    expected = (of_v - v * (v * of_v).sum(0)) / norm
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)


def test_a_call_leaves_the_kernel_alone(linear, rng):
    factory, shape = linear
    model = _model(bayesnorm.AnalyticNormalization(factory()), shape)
    before = model.get_weights()
    model.predict(rng.normal(size=(4, *shape)), verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_analytic_statistics_are_those_of_the_data(linear, rng):
    """White data of mean 0 and variance 1: exact but for the border's approximation.

    Over n = 4,000 examples the mean of an output of variance 1 has a standard
    error of 0.016 (positions help), the variance one of 0.022: 5 of these.
    """
    factory, shape = linear
    model = _model(bayesnorm.AnalyticNormalization(factory()), shape)
    y = model.predict(rng.normal(size=(4000, *shape)), batch_size=500, verbose=0)
    axes = tuple(range(y.ndim - 1))
    np.testing.assert_allclose(y.mean(axes), 0, atol=0.08)
    # Depth multipliers and borders are averaged: the variance is right overall.
    np.testing.assert_allclose(y.var(axes), 1, atol=0.11)


def test_analytic_statistics_follow_the_layers_above(rng):
    """A deep net on white data keeps mean 0, variance 1 in every layer."""
    inputs = keras.Input((12, 12, 3))
    x, outputs = inputs, []
    for i in range(3):
        x = bayesnorm.AnalyticNormalization(L.Conv2D(32, 3, padding="same"))(x)
        outputs.append(x)
        x = bayesnorm.ScaleNorm(
            bias_initializer=keras.initializers.RandomNormal(stddev=0.5, seed=i),
            scale_initializer=keras.initializers.RandomUniform(0.5, 2.0, seed=i),
        )(x)
        x = L.LeakyReLU(0.01)(x)
    model = keras.Model(inputs, outputs)
    data = rng.normal(size=(500, 12, 12, 3)).astype("float32")
    for y in model.predict(data, verbose=0):
        # What independence of channels and positions leaves out.
        assert abs(y.mean()) < 0.1
        np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=0.35)
        np.testing.assert_allclose(y.var((0, 1, 2)).mean(), 1, atol=0.15)


def test_analytic_gradient_goes_through_the_layers_above(rng):
    inputs = keras.Input((5,))
    first = L.Dense(6, activation="relu", bias_initializer="ones")
    last = bayesnorm.AnalyticNormalization(L.Dense(3))
    model = keras.Model(inputs, last(first(inputs)))

    def stddev(_):
        return ops.sum(last.statistics((None, 6))[1])

    (gradient,) = _gradients(model, stddev, [first.kernel])
    assert np.abs(gradient).max() > 1e-3
    kernel = ops.convert_to_numpy(first.kernel)
    step = np.zeros_like(kernel)
    step[1, 2] = 1e-2
    values = []
    for sign in (1, -1):
        first.kernel.assign(kernel + sign * step)
        values.append(float(stddev(None)))
    numeric = (values[0] - values[1]) / 2e-2
    np.testing.assert_allclose(gradient[1, 2], numeric, rtol=0.02, atol=1e-3)


def test_analytic_says_how_a_sequential_goes_on_after_a_refusal():
    class Unknown(L.Layer):
        def call(self, x):
            return x

    model = keras.Sequential([keras.Input((4,)), Unknown()])
    with pytest.raises(ValueError, match="of type Unknown") as caught:
        model.add(bayesnorm.AnalyticNormalization(L.Dense(3)))
    assert "pop()" in caught.value.__notes__[0]
    model.pop()
    model.add(L.Dense(2))
    assert model.predict(np.ones((5, 4)), verbose=0).shape == (5, 2)


def test_analytic_pools_the_inputs_of_a_layer_used_twice():
    layer = bayesnorm.AnalyticNormalization(L.Dense(3), epsilon=0.0)
    inputs = keras.Input((4,))
    doubled = L.Add()([inputs, inputs])
    keras.Model(inputs, [layer(inputs), layer(doubled)])
    _, stddev = layer.statistics((None, 4))
    norms = ops.convert_to_numpy(filter_norms(layer.layer))
    # Variances 1 and, of a doubled value, 4, pooled to 5 / 2.
    np.testing.assert_allclose(
        ops.convert_to_numpy(stddev), norms * np.sqrt(2.5), rtol=1e-5
    )


def test_a_model_cut_out_of_another_leaves_its_statistics(rng):
    inputs = keras.Input((4,))
    hidden = L.Dense(6, activation="relu", bias_initializer="ones")(inputs)
    model = keras.Model(
        inputs, bayesnorm.AnalyticNormalization(L.Dense(3))(hidden), name="whole"
    )
    x = rng.normal(size=(5, 4)).astype("float32")
    before = ops.convert_to_numpy(model(x))
    tail = keras.Model(hidden, model.output)
    np.testing.assert_array_equal(ops.convert_to_numpy(model(x)), before)
    head = keras.Model(inputs, hidden)
    np.testing.assert_allclose(ops.convert_to_numpy(tail(head(x))), before, rtol=1e-6)


def test_analytic_behind_batch_normalization_trusts_it(rng):
    """Data-set moments of BN are its offset and its scale, from the start."""
    norm = L.BatchNormalization(
        beta_initializer=keras.initializers.Constant(0.5),
        gamma_initializer=keras.initializers.Constant(2.0),
    )
    layer = bayesnorm.AnalyticNormalization(L.Dense(3), epsilon=0.0)
    model = keras.Sequential(
        [keras.Input((4,)), L.Lambda(lambda x: 7 * x + 3), norm, layer]
    )
    mean, stddev = layer.statistics((None, 4))
    w = ops.convert_to_numpy(layer.layer.kernel)
    np.testing.assert_allclose(ops.convert_to_numpy(mean), 0.5 * w.sum(0), rtol=1e-5)
    np.testing.assert_allclose(
        ops.convert_to_numpy(stddev), 2 * np.linalg.norm(w, axis=0), rtol=1e-5
    )
    y = model(rng.normal(size=(4000, 4)).astype("float32"), training=True)
    np.testing.assert_allclose(ops.convert_to_numpy(y).std(0), 1, atol=0.06)


@pytest.mark.parametrize("kind", ["weight", "analytic"])
def test_a_zero_filter_gives_zero(kind, rng):
    wrapper = {
        "weight": bayesnorm.WeightNormalization,
        "analytic": bayesnorm.AnalyticNormalization,
    }[kind]
    layer = wrapper(L.Dense(3))
    model = _model(layer, (4,))
    kernel = ops.convert_to_numpy(layer.layer.kernel).copy()
    kernel[:, 1] = 0
    layer.layer.kernel.assign(kernel)
    x = rng.normal(size=(5, 4)).astype("float32")
    y = ops.convert_to_numpy(model(x))
    np.testing.assert_array_equal(y[:, 1], 0)
    (gradient,) = _gradients(
        model, lambda m: ops.sum(ops.square(m(x) - 1)), [layer.layer.kernel]
    )
    assert np.isfinite(gradient).all()


def test_analytic_in_a_growing_sequential_model():
    """Every `add` calls all layers again: that is one use, not many."""
    model = keras.Sequential([keras.Input((4,))])
    model.add(L.Dense(6, activation="relu"))
    layer = bayesnorm.AnalyticNormalization(L.Dense(3))
    model.add(layer)
    first = [ops.convert_to_numpy(v) for v in layer.statistics((None, 6))]
    model.add(bayesnorm.StochasticScaleNorm())
    model.add(L.ReLU())
    second = [ops.convert_to_numpy(v) for v in layer.statistics((None, 6))]
    np.testing.assert_array_equal(first, second)


def test_projection_holds_after_steps(rng):
    layer = bayesnorm.WeightNormalization(L.Conv2D(4, 3), projection=True)
    model = keras.Sequential([keras.Input((6, 6, 3)), layer, L.Flatten(), L.Dense(1)])
    norms = ops.convert_to_numpy(filter_norms(layer.layer))
    np.testing.assert_allclose(norms, 1, atol=1e-6)
    model.compile(keras.optimizers.SGD(0.5, momentum=0.9), "mse")
    x = rng.normal(size=(16, 6, 6, 3))
    before = ops.convert_to_numpy(layer.layer.kernel)
    model.fit(x, rng.normal(size=(16, 1)), verbose=0, epochs=3)
    norms = ops.convert_to_numpy(filter_norms(layer.layer))
    np.testing.assert_allclose(norms, 1, atol=1e-6)
    assert np.abs(before - ops.convert_to_numpy(layer.layer.kernel)).max() > 0.01


def test_the_wrapped_layers_bias_is_ignored():
    layer = bayesnorm.WeightNormalization(L.Dense(3, use_bias=True))
    layer.build((None, 4))
    assert len(layer.weights) == 1


WRAPPERS = pytest.mark.parametrize(
    "wrapper", [bayesnorm.WeightNormalization, bayesnorm.AnalyticNormalization]
)


@WRAPPERS
@pytest.mark.parametrize(
    ("given", "wanted", "bias", "activation"),
    [
        ({"activation": "tanh"}, {}, True, "tanh"),
        ({"activation": "tanh", "use_bias": False}, {}, False, "tanh"),
        ({"activation": "tanh"}, {"use_bias": False}, False, "tanh"),
        ({}, {"use_bias": True, "activation": "relu"}, True, "relu"),
        ({}, {}, False, "linear"),
    ],
)
def test_a_bias_and_an_activation_stand_behind_the_normalization(
    wrapper, given, wanted, bias, activation, rng, tmp_path
):
    shape = (7, 3)
    layer = wrapper(L.Conv1D(4, 3, bias_initializer="ones", **given), **wanted)
    plain = wrapper(L.Conv1D(4, 3))
    model, normalized = _model(layer, shape), _model(plain, shape)
    plain.layer.kernel.assign(layer.layer.kernel)
    assert (layer.bias is not None) == bias
    x = rng.normal(size=(5, *shape)).astype("float32")
    expected = ops.convert_to_numpy(normalized(x)) + float(bias)
    expected = ops.convert_to_numpy(keras.activations.get(activation)(expected))
    np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), ops.convert_to_numpy(model(x)))


@WRAPPERS
def test_quantization_leaves_the_wrapped_layer_as_it_is_and_says_so(wrapper, rng):
    model = keras.Sequential(
        [keras.Input((6,)), wrapper(L.Dense(5), name="norm"), L.Dense(4)]
    )
    x = rng.normal(size=(3, 6)).astype("float32")
    expected = model.predict(x, verbose=0)
    with pytest.warns(UserWarning, match="wrapper 'norm' stays in floating point"):
        model.quantize("int8")
    np.testing.assert_allclose(
        model.predict(x, verbose=0), expected, atol=0.05 * np.abs(expected).max()
    )
    with pytest.raises(NotImplementedError, match="plain layer with the divided"):
        model.layers[0].layer.quantize("int8")


@WRAPPERS
@pytest.mark.parametrize("kind", ["dense", "conv2d"])
def test_lora_in_the_wrapper_is_of_the_kernel_that_is_normalized(
    wrapper, kind, rng, tmp_path
):
    factory, shape = LAYERS[kind]
    layer = wrapper(factory())
    model = _model(layer, shape)
    x = rng.normal(size=(8, *shape)).astype("float32")
    before = ops.convert_to_numpy(model(x))
    layer.layer.enable_lora(2)
    np.testing.assert_allclose(model(x), before, rtol=1e-5, atol=1e-6)
    frozen = ops.convert_to_numpy(layer.layer._kernel).copy()
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.fit(x, np.ones_like(before), epochs=3, verbose=0)
    np.testing.assert_array_equal(layer.layer._kernel, frozen)
    after = ops.convert_to_numpy(model(x))
    assert np.abs(after - before).max() > 0.01
    whole = _model(wrapper(factory()), shape)
    whole.layers[-1].layer.kernel.assign(layer.layer.kernel)
    np.testing.assert_allclose(after, whole(x), rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), after, rtol=1e-4, atol=1e-5)


@WRAPPERS
class TestWrapperErrors:
    def test_other_layer(self, wrapper):
        with pytest.raises(ValueError, match=r"wraps a linear Keras layer .*LSTM"):
            wrapper(L.LSTM(3))

    def test_two_activations(self, wrapper):
        with pytest.raises(ValueError, match="activation='tanh'"):
            wrapper(L.Dense(3, activation="relu"), activation="tanh")

    def test_a_quantized_layer(self, wrapper):
        dense = L.Dense(3, use_bias=False)
        dense.build((None, 2))
        dense.quantize("int8")
        with pytest.raises(ValueError, match=r"'dense.*stays in floating point"):
            wrapper(dense)

    def test_built_with_bias(self, wrapper):
        dense = L.Dense(3)
        dense.build((None, 2))
        with pytest.raises(ValueError, match="use_bias=False"):
            wrapper(dense)


def test_analytic_names_an_unknown_layer_upstream():
    class Mystery(L.Layer):
        def call(self, x):
            return x * x

    inputs = keras.Input((4,))
    x = Mystery(name="riddle")(inputs)
    with pytest.raises(ValueError, match=r"riddle.*Mystery(.|\n)*register"):
        bayesnorm.AnalyticNormalization(L.Dense(3))(x)


def test_analytic_without_a_graph_says_what_to_give(rng):
    layer = bayesnorm.AnalyticNormalization(L.Dense(3))
    with pytest.raises(ValueError, match=r"input_mean=.*input_variance="):
        layer(rng.normal(size=(2, 4)).astype("float32"))


def test_analytic_in_a_subclassed_model_takes_moments(rng):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = bayesnorm.AnalyticNormalization(
                L.Dense(3), input_mean=2.0, input_variance=9.0
            )

        def call(self, x):
            return self.norm(x)

    y = Net().predict(rng.normal(2, 3, size=(20000, 4)), verbose=0, batch_size=5000)
    np.testing.assert_allclose(y.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(y.std(0), 1, atol=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_mean": 0.0}, "go together"),
        ({"input_mean": 0.0, "input_variance": -1.0}, "not negative"),
        ({"input_mean": float("nan"), "input_variance": 1.0}, "must be finite"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": "x"}, "epsilon"),
    ],
)
def test_analytic_argument_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        bayesnorm.AnalyticNormalization(L.Dense(3), **arguments)
