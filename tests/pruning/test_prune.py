"""`prune` on networks of which what must stay is known."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import bayesnorm
from bayesnorm.pruning import magnitude_masks
from bayesnorm.pruning.prune import _difference


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def values(x):
    return np.asarray(ops.convert_to_numpy(x), "float64")


def close(model, other, shape=None, tolerance=1e-5):
    shape = shape or model.inputs[0].shape[1:]
    x = np.random.default_rng(3).normal(size=(3, *shape)).astype("float32")
    for a, b in zip(
        keras.tree.flatten(model(x)), keras.tree.flatten(other(x)), strict=True
    ):
        a, b = values(a), values(b)
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max()


def with_biases(model, scale=1.0):
    """Gives all that is not a kernel random values, that constants are not 0."""
    rng = np.random.default_rng(1)
    for layer in model._flatten_layers(include_self=False):
        for v in () if isinstance(layer, keras.Model) else layer.weights:
            if v.name in ("bias", "beta", "moving_mean"):
                v.assign(scale * rng.uniform(0.2, 1.0, v.shape))
    return model


def dead(size, *indices):
    """A mask that leaves channels out."""
    mask = np.ones(size, bool)
    mask[list(indices)] = False
    return mask


def widths(model):
    return {x.name: x.output.shape[-1] for x in model.layers}


# --- constants -----------------------------------------------------------------------


def test_a_dead_unit_leaves_its_activated_bias():
    model = with_biases(
        keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(4, "relu", name="hidden"),
                layers.Dense(2, name="out"),
            ]
        )
    )
    kernel, bias = (values(v) for v in model.get_layer("out").weights)
    held = np.maximum(values(model.get_layer("hidden").bias), 0.0)
    pruned, report = bayesnorm.prune(model, keep={"hidden": dead(4, 1, 3)})
    assert isinstance(pruned, keras.Sequential)
    new_kernel, new_bias = (values(v) for v in pruned.get_layer("out").weights)
    np.testing.assert_array_equal(new_kernel, kernel[[0, 2]])
    expected = bias + held[1] * kernel[1] + held[3] * kernel[3]
    np.testing.assert_allclose(new_bias, expected, rtol=1e-6)
    assert report.kept == {"hidden": (2, 4), "out": (2, 2)}
    assert report.macs == (5 * 4 + 4 * 2, 5 * 2 + 2 * 2)
    assert report.parameters == (5 * 4 + 4 + 4 * 2 + 2, 5 * 2 + 2 + 2 * 2 + 2)


def test_a_layer_without_bias_gains_one_where_it_needs_one():
    x = keras.Input((5,))
    h = layers.Dense(4, "sigmoid", name="hidden", use_bias=False)(x)
    model = keras.Model(x, layers.Dense(2, use_bias=False, name="out")(h))
    pruned, _ = bayesnorm.prune(model, keep={"hidden": dead(4, 0)})
    expected = 0.5 * values(model.get_layer("out").kernel)[0]  # sigmoid(0) = 0.5
    np.testing.assert_allclose(values(pruned.get_layer("out").bias), expected, 1e-6)


@pytest.mark.parametrize("scale", [True, False])
def test_a_dead_scale_of_batch_normalization_leaves_beta(scale):
    x = keras.Input((5,))
    h = layers.Dense(4, name="hidden")(x)
    h = layers.BatchNormalization(scale=scale, name="norm")(h)
    model = with_biases(keras.Model(x, layers.Dense(2, name="out")(h)))
    beta = values(model.get_layer("norm").beta)
    pruned, report = bayesnorm.prune(model, keep={"norm": dead(4, 2)})
    assert report.kept["hidden"] == (3, 4)
    out = model.get_layer("out")
    expected = values(out.bias) + beta[2] * values(out.kernel)[2]
    np.testing.assert_allclose(values(pruned.get_layer("out").bias), expected, 1e-6)


def test_zero_padding_keeps_one_constant_channel_for_all():
    x = keras.Input((6, 6, 3))
    h = layers.Conv2D(8, 3, activation="relu", name="first")(x)
    h = layers.Conv2D(4, 3, padding="same", name="second")(h)
    model = with_biases(keras.Model(x, h))
    mask = dead(8, 0, 2, 3, 5, 7)
    pruned, report = bayesnorm.prune(model, keep={"first": mask})
    assert report.kept["first"] == (4, 8)  # Three that live, one that stands for five.
    ((name, count, reason),) = report.refused
    assert (name, count) == ("first", 1)
    assert "second" in reason
    assert "border" in reason
    close(masked(model, first=mask), pruned)


def test_zero_padding_of_zeros_keeps_none():
    x = keras.Input((6, 6, 3))
    h = layers.Conv2D(8, 3, activation="relu", name="first")(x)
    h = layers.ZeroPadding2D()(h)
    h = layers.Conv2D(4, 3, padding="same", name="second")(h)
    model = with_biases(keras.Model(x, h), -1.0)
    _, report = bayesnorm.prune(model, keep={"first": dead(8, 0, 2)})
    assert report.kept["first"] == (6, 8)
    assert not report.refused


def test_padding_of_a_constant_keeps_one_through_what_keeps_zero():
    x = keras.Input((6, 6, 3))
    h = layers.Conv2D(8, 3, name="first")(x)
    h = layers.ReLU()(layers.ZeroPadding2D()(h))
    model = with_biases(keras.Model(x, layers.Conv2D(4, 3, name="second")(h)))
    mask = dead(8, 0, 2, 5)
    pruned, report = bayesnorm.prune(model, keep={"first": mask})
    assert report.kept["first"] == (6, 8)
    close(masked(model, first=mask), pruned)


def test_a_constant_behind_a_padded_filter_of_its_own_stays():
    x = keras.Input((6, 6, 3))
    h = layers.Conv2D(8, 1, activation="relu", name="first")(x)
    h = layers.DepthwiseConv2D(3, padding="same", name="own")(h)
    model = with_biases(keras.Model(x, layers.Conv2D(4, 1, name="second")(h)))
    _, report = bayesnorm.prune(model, keep={"first": dead(8, 0)})
    assert report.kept["first"] == (8, 8)
    ((name, count, reason),) = report.refused
    assert (name, count) == ("first", 1)
    assert "second" in reason
    _, report = bayesnorm.prune(model, keep={"own": dead(8, 0)})
    assert report.kept["first"] == (7, 8)
    assert not report.refused


def masked(model, **masks):
    """The network with zeroes in the kernels of what masks leave out."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for name, mask in masks.items():
        kernel = copy.get_layer(name).kernel
        kernel.assign(kernel * mask.astype("float32"))
    return copy


# --- through the graph ---------------------------------------------------------------


def test_flatten_takes_all_positions_of_a_channel():
    x = keras.Input((4, 4, 2))
    h = layers.Conv2D(5, 1, activation="relu", name="conv")(x)
    model = keras.Model(x, layers.Dense(3, name="out")(layers.Flatten()(h)))
    mask = dead(5, 1, 4)
    pruned, _ = bayesnorm.prune(model, keep={"conv": mask})
    assert pruned.get_layer("out").kernel.shape == (4 * 4 * 3, 3)
    close(masked(model, conv=mask), pruned)


def test_a_sum_keeps_what_one_of_both_needs():
    x = keras.Input((6,))
    a = layers.Dense(5, name="a")(x)
    b = layers.Dense(5, name="b")(x)
    model = with_biases(keras.Model(x, layers.Dense(2)(layers.Add()([a, b]))))
    masks = {"a": dead(5, 0, 1), "b": dead(5, 1, 2)}
    pruned, report = bayesnorm.prune(model, keep=masks)
    assert report.kept["a"] == report.kept["b"] == (4, 5)
    close(masked(model, **masks), pruned)


def test_a_gate_goes_with_its_trunk():
    x = keras.Input((6, 6, 3))
    h = layers.Conv2D(8, 3, activation="relu", use_bias=False, name="trunk")(x)
    gate = layers.Dense(4, "relu", name="squeeze")(layers.GlobalAveragePooling2D()(h))
    gate = layers.Dense(8, "sigmoid", name="excite")(gate)
    h = layers.Multiply()([h, layers.Reshape((1, 1, 8))(gate)])
    model = with_biases(keras.Model(x, layers.Conv2D(2, 3, name="out")(h)))
    mask = dead(8, 2, 6)
    pruned, report = bayesnorm.prune(model, keep={"trunk": mask})
    assert report.kept["trunk"] == report.kept["excite"] == (6, 8)
    assert pruned.get_layer("squeeze").kernel.shape == (6, 4)
    close(masked(model, trunk=mask), pruned)


def test_concatenation_of_a_tensor_with_itself():
    x = keras.Input((6, 6, 3))
    h = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    twice = layers.Concatenate()([h, layers.Concatenate()([h, h])])
    model = with_biases(keras.Model(x, layers.Conv2D(2, 3, name="out")(twice)))
    mask = dead(4, 3)
    pruned, _ = bayesnorm.prune(model, keep={"conv": mask})
    assert pruned.get_layer("out").kernel.shape == (3, 3, 9, 2)
    close(masked(model, conv=mask), pruned)


def test_a_layer_used_twice_goes_where_it_is_dead_in_both_calls():
    x, y = keras.Input((5,)), keras.Input((5,))
    shared = layers.Dense(6, "relu", name="shared")
    merged = layers.Concatenate()([shared(x), shared(y)])
    model = with_biases(keras.Model([x, y], layers.Dense(2, name="out")(merged)))
    pruned, report = bayesnorm.prune(model, keep={"shared": dead(6, 0, 5)})
    assert report.kept["shared"] == (4, 6)
    assert pruned.get_layer("out").kernel.shape == (8, 2)
    assert len([x for x in pruned.layers if x.name == "shared"]) == 1


def test_nested_models_called_twice():
    inner = keras.Input((6,))
    body = keras.Model(inner, layers.Dense(6, "relu", name="inner")(inner), name="body")
    x = keras.Input((5,))
    h = layers.Dense(6, "relu", name="first")(x)
    model = with_biases(keras.Model(x, layers.Dense(2, name="out")(body(body(h)))))
    masks = {"first": dead(6, 1, 2), "inner": dead(6, 1, 3)}
    # In the first call the inner layer takes what the outer makes.
    pruned, report = bayesnorm.prune(model, keep=masks)
    assert report.kept["first"] == report.kept["inner"]
    assert isinstance(pruned.get_layer("body"), keras.Model)
    weights = masked(model, first=masks["first"])
    nested = weights.get_layer("body").get_layer("inner").kernel
    nested.assign(nested * masks["inner"].astype("float32"))
    close(weights, pruned)


def test_groups_stay_of_equal_size():
    x = keras.Input((6, 6, 3))
    h = layers.Conv2D(8, 1, activation="relu", name="first", use_bias=False)(x)
    h = layers.Conv2D(8, 3, groups=2, name="grouped")(h)
    model = with_biases(keras.Model(x, layers.Conv2D(2, 1)(h)))
    masks = {"first": dead(8, 0, 1, 4), "grouped": dead(8, 0, 5, 6, 7)}
    pruned, report = bayesnorm.prune(model, keep=masks)
    assert report.kept["first"] == report.kept["grouped"] == (6, 8)
    assert pruned.get_layer("grouped").kernel.shape == (3, 3, 3, 6)
    assert any("equal size" in reason for *_, reason in report.refused)
    close(masked(model, **masks), pruned)


def test_an_input_of_the_model_is_gathered():
    x = keras.Input((20,))
    theta = bayesnorm.StructuredBayesianPruning(name="theta")
    model = keras.Model(x, layers.Dense(3, name="out")(theta(x)))
    keep = np.arange(20) % 3 == 0
    pruned, report = bayesnorm.prune(model, keep={"theta": keep})
    assert pruned.input_shape == (None, 20)
    assert pruned.get_layer("out").kernel.shape == (7, 3)
    assert report.layers[0].inputs == (20, 7)
    assert report.macs == (60, 21)


def test_several_outputs_keep_what_they_are():
    x = keras.Input((5,))
    h = layers.Dense(6, "relu", name="hidden")(x)
    model = with_biases(keras.Model(x, {"a": layers.Dense(2)(h), "h": h}))
    pruned, report = bayesnorm.prune(model, keep={"hidden": dead(6, 0)})
    assert report.kept["hidden"] == (6, 6)
    ((name, count, reason),) = report.refused
    assert (name, count) == ("hidden", 1)
    assert "output of the model" in reason
    assert set(pruned(np.ones((1, 5), "float32"))) == {"a", "h"}


def test_what_mixes_channels_is_refused_by_name():
    x = keras.Input((7, 6))
    h = layers.Conv1D(8, 1, name="conv", use_bias=False)(x)
    h = layers.MultiHeadAttention(2, 4, name="attention")(h, h)
    model = keras.Model(x, layers.Dense(2)(h))
    _, report = bayesnorm.prune(model, keep={"conv": dead(8, 0)})
    ((name, _, reason),) = report.refused
    assert name == "conv"
    assert "attention" in reason
    assert "MultiHeadAttention" in str(report)


def test_round_to():
    x = keras.Input((5,))
    h = layers.Dense(16, "relu", name="hidden")(x)
    model = with_biases(keras.Model(x, layers.Dense(2)(h)))
    mask = np.arange(16) < 5
    pruned, report = bayesnorm.prune(model, keep={"hidden": mask}, round_to=4)
    assert report.kept["hidden"] == (8, 16)
    close(masked(model, hidden=mask), pruned)


def test_a_layer_without_channels_left_keeps_one_and_warns():
    x = keras.Input((5,))
    h = layers.Dense(4, "relu", name="hidden")(x)
    model = with_biases(keras.Model(x, layers.Dense(2)(h)))
    with pytest.warns(UserWarning, match="hidden"):
        _, report = bayesnorm.prune(model, keep={"hidden": np.zeros(4, bool)})
    assert report.kept["hidden"] == (1, 4)
    assert report.kept_alone


# --- graphs of other kinds -----------------------------------------------------------


def same_on(pruned, model, inputs, tolerance=1e-5):
    for a, b in zip(
        keras.tree.flatten(model(inputs)),
        keras.tree.flatten(pruned(inputs)),
        strict=True,
    ):
        a, b = values(a), values(b)
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max()


def normal(*shape):
    return np.random.default_rng(5).normal(size=shape).astype("float32")


@pytest.mark.parametrize("unused", [[1], [1, 5, 6, 7]])
def test_what_stands_for_constants_may_itself_have_weights_of_zero(unused):
    x = keras.Input((6, 6, 3))
    h = layers.Conv2D(8, 1, name="a")(x)
    b = layers.Conv2D(4, 3, padding="same", name="b")(h)
    s = layers.SeparableConv2D(3, 3, padding="same", name="s")(h)
    model = with_biases(keras.Model(x, [b, s]))
    bias = np.full(8, 0.2, "float32")
    bias[1] = 5.0  # The largest constant, which `s` needs and `b` does not.
    model.get_layer("a").bias.assign(bias)
    without_rows(model.get_layer("b").kernel, unused)
    without_rows(model.get_layer("s").pointwise_kernel, [0, 2, 3, 4, 5])
    mask = dead(8, 1, 2, 3)
    pruned, report = bayesnorm.prune(model, keep={"a": mask})
    assert report.kept["a"][0] < 8
    close(masked(model, a=mask), pruned)


def without_rows(kernel, rows):
    new = values(kernel)
    new[..., rows, :] = 0.0
    kernel.assign(new)


def test_not_a_number_is_a_difference():
    x = keras.Input((2,))
    model, broken = keras.Model(x, x * 1.0), keras.Model(x, ops.log(ops.abs(x) * -1.0))
    assert _difference(model, broken) == np.inf
    assert _difference(broken, broken) == 0.0


def test_channels_that_meet_positions_stay():
    x = keras.Input((6, 5))
    h = layers.Dense(8, "relu", name="a")(x)
    t = layers.Dense(6, name="tokens")(layers.Permute((2, 1))(h))
    h = layers.Add()([h, layers.Permute((2, 1))(t)])
    h = layers.Dense(7, "relu", name="b")(h)
    q, k = layers.Dense(1)(h), layers.Permute((2, 1))(layers.Dense(1)(h))
    h = layers.Dense(4, "relu", name="c")(layers.Multiply()([q, k]))
    model = with_biases(keras.Model(x, layers.Dense(2)(h)))
    masks = {"b": dead(7, 1, 2), "tokens": dead(6, 1), "c": dead(4, 3)}
    pruned, report = bayesnorm.prune(model, keep=masks)
    assert [report.kept[name][0] for name in ("b", "tokens", "c")] == [5, 6, 3]
    (tokens,) = [x for x in report.layers if x.name == "tokens"]
    assert tokens.inputs == (6, 6)
    close(masked(model, **masks), pruned)


def test_operations_that_make_positions_of_examples():
    x = keras.Input((6, 5))
    h = layers.Dense(8, "relu", name="a")(x)
    h = layers.Dense(4, "relu", name="b")(ops.reshape(h, (-1, 8)))
    h = ops.transpose(ops.reshape(h, (-1, 6, 4)), (2, 0, 1))
    model = with_biases(keras.Model(x, ops.transpose(h, (1, 2, 0))))
    masks = {"a": dead(8, 1, 2), "b": dead(4, 0)}
    pruned, report = bayesnorm.prune(model, keep=masks)
    assert report.kept == {"a": (6, 8), "b": (4, 4)}
    close(masked(model, **masks), pruned)


@keras.saving.register_keras_serializable("test_prune")
def over_positions(x):
    return ops.softmax(x, axis=-2)


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda h: ops.mean(ops.expand_dims(h, (1, 3)), (1, 2, 3)), 6),
        (lambda h: ops.max(h, axis=1, initial=0.1), 8),
        (lambda h: layers.Activation(over_positions)(h), 8),
        (lambda h: layers.BatchNormalization()(inputs=h), 6),
        (lambda h: ops.concatenate([np.ones((3, 1, 8), "float32"), h], axis=1), 8),
    ],
)
def test_operations_with_other_arguments(function, kept):
    x = keras.Input(batch_shape=(3, 6, 5))
    h = function(layers.Dense(8, name="a")(inputs=x))
    model = with_biases(keras.Model(x, layers.Dense(2, name="out")(h)), -1.0)
    mask = dead(8, 1, 2)
    pruned, report = bayesnorm.prune(model, keep={"a": mask})
    assert report.kept["a"] == (kept, 8)
    same_on(pruned, masked(model, a=mask), normal(3, 6, 5))


def test_a_mask_of_positions_is_not_thinned():
    x, y = keras.Input((6, 5)), keras.Input((5,))
    mask = ops.cast(layers.Dense(6, "relu", name="mask")(y), "bool")
    h = layers.LSTM(4)(layers.Dense(4, name="a")(x), mask=mask)
    model = with_biases(keras.Model([x, y], layers.Dense(2, name="out")(h)))
    keep = {"mask": dead(6, 1, 2)}
    pruned, report = bayesnorm.prune(model, keep=keep)
    assert report.kept["mask"] == (6, 6)
    same_on(pruned, masked(model, **keep), [normal(3, 6, 5), normal(3, 5)])


def test_a_dense_layer_gathers_from_tensors_of_several_ranks():
    x, y = keras.Input((20,)), keras.Input((21, 20))
    dense = layers.Dense(4, "relu", name="d")
    model = with_biases(keras.Model([x, y], [dense(x), dense(y)]))
    without_rows(dense.kernel, slice(0, None, 2))
    pruned, _ = bayesnorm.prune(model, keep={"d": np.ones(4, bool)})
    assert pruned.get_layer("d").kernel.shape == (10, 4)
    same_on(pruned, model, [normal(3, 20), normal(3, 21, 20)])


def test_a_nested_model_on_inputs_of_two_sizes():
    inner = keras.Input((None, None, 4))
    body = layers.Conv2D(5, 3, activation="relu", name="inner")(inner)
    body = keras.Model(inner, layers.GlobalAveragePooling2D()(body), name="body")
    x, y = keras.Input((8, 8, 3)), keras.Input((6, 6, 3))
    first = layers.Conv2D(4, 1, activation="relu", name="first")
    merged = layers.Add()([body(first(x)), body(first(y))])
    model = with_biases(keras.Model([x, y], layers.Dense(2)(merged)))
    mask = dead(4, 1)
    pruned, _ = bayesnorm.prune(model, keep={"first": mask})
    assert pruned.get_layer("body").input_shape == (None, None, None, 3)
    images = [normal(3, 8, 8, 3), normal(3, 6, 6, 3)]
    same_on(pruned, masked(model, first=mask), images)


def test_a_nested_model_called_by_the_names_of_its_inputs():
    a, b = keras.Input((6,), name="z"), keras.Input((6,), name="a")
    outputs = [layers.Dense(4)(a), layers.Dense(3)(b)]
    body = keras.Model([a, b], outputs, name="body")
    x = keras.Input((5,))
    h, g = (layers.Dense(6, "relu", name=n)(x) for n in "hg")
    merged = layers.Concatenate()(body({"a": g, "z": h}))
    model = with_biases(keras.Model(x, layers.Dense(2, name="out")(merged)))
    masks = {"h": dead(6, 1), "g": dead(6, 2, 3)}
    pruned, report = bayesnorm.prune(model, keep=masks)
    assert report.kept["h"] == (5, 6)
    assert report.kept["g"] == (4, 6)
    close(masked(model, **masks), pruned)


@keras.saving.register_keras_serializable("test_prune")
class Standardized(layers.Conv2D):
    """A convolution of a kernel that is standardized, as Keras says how to write it."""

    def convolution_op(self, inputs, kernel):
        kernel = kernel - ops.mean(kernel, (0, 1, 2))
        kernel = kernel / (ops.std(kernel, (0, 1, 2)) + 1e-5)
        return super().convolution_op(inputs, kernel)


@keras.saving.register_keras_serializable("test_prune")
class Inside(keras.Model):
    """A model without a graph."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = layers.Dense(4, "relu")

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {"name": self.name}


def test_layers_that_compute_something_else_stay_as_they_are():
    x = keras.Input((6, 6, 3))
    h = Standardized(8, 3, name="a")(x)
    h = bayesnorm.StructuredBayesianPruning(name="theta")(h)
    h = Inside(name="inside")(Standardized(4, 3, name="b")(h))
    h = layers.Dense(6, "relu", name="c")(h)
    model = with_biases(keras.Model(x, layers.Dense(2, name="out")(h)))
    pruned, report = bayesnorm.prune(model, keep={"c": dead(6, 1)})
    assert report.kept == {"a": (8, 8), "b": (4, 4), "c": (5, 6), "out": (2, 2)}
    close(masked(model, c=dead(6, 1)), pruned)


@pytest.mark.parametrize("taker", ["dense", "transposed"])
def test_the_bias_of_theta_before_other_layers(taker):
    x = keras.Input((5, 5, 3))
    h = layers.Conv2D(8, 1, activation="relu")(x)
    h = bayesnorm.StructuredBayesianPruning(use_bias=True)(h)
    last = layers.Dense(2) if taker == "dense" else layers.Conv2DTranspose(2, 3)
    model = with_biases(keras.Model(x, last(h)))
    pruned, _ = bayesnorm.prune(model)
    close(model, pruned)


@pytest.mark.parametrize("shared", ["theta", "dense"])
def test_a_layer_beside_theta_that_takes_an_input_of_the_model_too(shared):
    x = keras.Input((8,))
    theta = bayesnorm.StructuredBayesianPruning()
    dense = layers.Dense(8)
    both = [theta(dense(x)), theta(x)] if shared == "theta" else None
    both = both or [dense(theta(x)), dense(x)]
    model = keras.Model(x, layers.Dense(2)(layers.Concatenate()(both)))
    theta.mean.assign(np.linspace(-3.0, 0.0, 8))
    pruned, _ = bayesnorm.prune(model)
    close(model, pruned)


def test_an_activation_that_is_a_layer():
    x = keras.Input((5,))
    h = layers.Dense(8, layers.LeakyReLU(), name="a")(x)
    h = layers.Dense(4, layers.PReLU(), name="b")(h)
    model = with_biases(keras.Model(x, layers.Dense(2, name="out")(h)), -1.0)
    mask = dead(8, 1, 2)
    pruned, report = bayesnorm.prune(model, keep={"a": mask})
    # What `b` is given stays: its slopes are no part of what can be thinned.
    assert report.kept["a"] == (8, 8)
    close(masked(model, a=mask), pruned)
    with pytest.raises(ValueError, match=r"'b'.*activation with weights"):
        bayesnorm.prune(model, keep={"b": dead(4, 1)})


@pytest.mark.parametrize("kind", ["int8", "lora"])
def test_kernels_that_are_not_of_one_array(kind):
    model = dense_model()
    a, b = (model.get_layer(name) for name in "ab")
    for layer in (a, b):
        layer.quantize("int8") if kind == "int8" else layer.enable_lora(2)
    with pytest.raises(ValueError, match=r"'a'.*quantized, or has low-rank"):
        bayesnorm.prune(model, keep={"a": dead(4, 1)})


def test_a_quantized_layer_takes_what_it_took():
    model = dense_model()
    model.get_layer("b").quantize("int8")
    _, report = bayesnorm.prune(model, keep={"a": dead(4, 1)})
    assert report.kept == {"a": (4, 4), "b": (2, 2)}
    assert report.macs == (28, 28)
    assert "quantized" in str(report)


def test_open_axes_that_must_be_large_and_batches_that_are_fixed():
    x = keras.Input((None, None, 3))
    h = layers.Conv2D(4, 7, strides=2, name="a")(x)
    h = layers.Conv2D(4, 15, activation="relu")(h)
    model = with_biases(keras.Model(x, layers.GlobalAveragePooling2D()(h)))
    assert bayesnorm.prune(model, keep={"a": dead(4, 1)})[1].kept["a"] == (3, 4)
    x = keras.Input((None, 3))
    h = layers.Dense(4, name="a")(x)
    model = keras.Model(x, layers.Dense(2)(ops.reshape(h, (-1, 7, 4))))
    with pytest.raises(ValueError, match="does not run on random inputs"):
        bayesnorm.prune(model, keep={"a": dead(4, 1)})
    x = keras.Input(batch_shape=(8, 6, 5))
    h = layers.LSTM(4, stateful=True)(layers.Dense(8, name="a")(x))
    model = keras.Model(x, layers.Dense(2)(h))
    assert bayesnorm.prune(model, keep={"a": dead(8, 1)})[1].kept["a"] == (8, 8)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="strings")
def test_inputs_of_text():
    x = keras.Input((3,), dtype="string")
    h = layers.StringLookup(vocabulary=["a", "b"], output_mode="multi_hot")(x)
    h = layers.Dense(8, "relu", name="a")(h)
    model = with_biases(keras.Model(x, layers.Dense(2)(h)))
    assert bayesnorm.prune(model, keep={"a": dead(8, 1)})[1].kept["a"] == (7, 8)


# --- the layer -----------------------------------------------------------------------


def sbp_network(before_bias):
    x = keras.Input((8, 8, 2))
    if before_bias:
        h = layers.Conv2D(6, 3, use_bias=False, name="conv")(x)
        h = bayesnorm.StructuredBayesianPruning(use_bias=True, name="conv_theta")(h)
        h = layers.ReLU()(h)
    else:
        h = layers.Conv2D(6, 3, activation="relu", name="conv")(x)
        h = bayesnorm.StructuredBayesianPruning(name="conv_theta")(h)
    h = layers.Flatten()(layers.MaxPooling2D()(h))
    h = bayesnorm.StructuredBayesianPruning(name="flat_theta")(h)
    h = layers.Dense(7, use_bias=False, name="dense")(h)
    h = layers.ReLU()(bayesnorm.StructuredBayesianPruning(use_bias=True, name="t")(h))
    model = with_biases(keras.Model(x, layers.Dense(3, name="out")(h)))
    rng = np.random.default_rng(2)
    for layer in bayesnorm.layers.posterior_layers(model):
        layer.mean.assign(rng.uniform(-3.0, 0.0, layer.mean.shape))
        layer.log_stddev.assign(rng.choice([-3.0, 1.5], layer.mean.shape, p=[0.6, 0.4]))
    return model


@pytest.mark.parametrize("before_bias", [True, False])
def test_theta_is_folded_and_the_outputs_stay(before_bias):
    model = sbp_network(before_bias)
    pruned, report = bayesnorm.prune(model)
    close(model, pruned)  # The layer's own evaluation.
    left = [type(x).__name__ for x in pruned.layers]
    assert not any(
        isinstance(x, bayesnorm.StructuredBayesianPruning) for x in pruned.layers
    )
    assert ("Rescaling" in left) is not before_bias  # Nothing linear is beside it.
    theta = model.get_layer("conv_theta")
    assert report.kept["conv"][0] == int((values(theta.snr()) >= 1.0).sum())


@pytest.mark.parametrize("before_bias", [True, False])
def test_training_goes_on_in_what_is_left(before_bias):
    model = sbp_network(before_bias)
    thinned, report = bayesnorm.prune(model, keep_posteriors=True)
    close(model, thinned)
    again, _ = bayesnorm.prune(thinned)
    once, once_report = bayesnorm.prune(model)
    close(once, again)
    assert again.count_params() == once.count_params()
    assert report.macs[0] == once_report.macs[0]
    for name in ("conv_theta", "t"):
        layer, new = model.get_layer(name), thinned.get_layer(name)
        for old, kept in zip(layer.weights[:2], new.weights[:2], strict=True):
            np.testing.assert_array_equal(values(old)[layer.keep], values(kept))
    # Draws of the channels that stay are of their posteriors, and stay in the graph:
    # of those that went each had its part in the variance.
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 2)).astype("float32")
    samples = [
        bayesnorm.predict(
            network, x, samples=1000, task="regression", keep_samples=True, seed=3
        ).samples
        for network in (model, thinned)
    ]
    means = [s.mean(0) for s in samples]
    errors = np.sqrt(sum(s.var(0) / 1000 for s in samples))
    assert np.abs((means[0] - means[1]) / errors).max() < 4.5
    with pytest.raises(ValueError, match="own `threshold`"):
        bayesnorm.prune(model, threshold=2.0, keep_posteriors=True)


def test_channels_taken_by_their_places():
    x = keras.Input((6, 6, 2))
    h = layers.Conv2D(5, 3, name="conv")(x)
    # The last twice, and one that nobody takes.
    h = ops.take(layers.ReLU()(h), np.array([4, 0, -1, 2]), axis=-1)
    model = with_biases(keras.Model(x, layers.Conv2D(3, 3, name="behind")(h)))
    kernel = model.get_layer("conv").kernel
    for indices, conv, behind in (((0, 1), 2, 3), ((0, 4), 1, 1)):
        kernel.assign(np.where(dead(5, *indices), values(kernel), 0.0))
        pruned, report = bayesnorm.prune(model)
        close(model, pruned)
        assert pruned.get_layer("behind").kernel.shape[2] == behind
        # The one that nobody takes has no sink that could free it, but is dead.
        assert report.kept["conv"][0] >= conv


def test_pruning_again_goes_on_from_what_an_input_keeps(tmp_path):
    model = with_biases(
        keras.Sequential(
            [
                keras.Input((20,)),
                bayesnorm.StructuredBayesianPruning(name="pixels"),
                layers.Dense(6, "relu", name="dense"),
                layers.Dense(2, name="out"),
            ]
        )
    )
    theta = model.get_layer("pixels")
    for count in (12, 7):
        theta.log_stddev.assign(np.where(np.arange(20) < count, -3.0, 1.5))
        theta.mean.assign(np.where(np.arange(20) < count, 0.0, -3.0))
        thinned, _ = bayesnorm.prune(model, keep_posteriors=True)
        close(model, thinned)
        assert thinned.get_layer("dense").kernel.shape[0] == count
        # As in another process.
        thinned.save(tmp_path / "model.keras")
        keras.backend.clear_session()
        model = thinned = keras.models.load_model(tmp_path / "model.keras")
        theta = thinned.get_layer("pixels")
    pruned, _ = bayesnorm.prune(thinned)
    close(thinned, pruned)
    assert pruned.get_layer("dense").kernel.shape[0] == 7


def test_a_pruning_layer_inside_another_is_named():
    x = keras.Input((4, 6))
    hidden = bayesnorm.StructuredBayesianPruning(name="hidden_theta")
    h = layers.TimeDistributed(hidden)(x)
    theta = bayesnorm.StructuredBayesianPruning(name="theta")
    model = keras.Model(x, layers.Dense(2)(theta(layers.Dense(3)(h))))
    with pytest.warns(UserWarning, match="hidden_theta"):
        pruned, _ = bayesnorm.prune(model)
    close(model, pruned)


def test_threshold_and_evidence_choose_channels():
    model = sbp_network(True)
    theta = model.get_layer("t")
    kept = bayesnorm.prune(model, threshold=0.0)[1].kept["dense"]
    assert kept == (7, 7)
    snr = np.sort(values(theta.snr()))
    middle = float(snr[2:4].mean())
    assert bayesnorm.prune(model, threshold=middle)[1].kept["dense"] == (4, 7)
    by_evidence = bayesnorm.prune(model, criterion="evidence")[1].kept["dense"]
    assert by_evidence == (int((theta.evidence() < -0.5 * np.log(2 * np.pi)).sum()), 7)


def test_wrappers_and_scales_become_plain_or_thinner():
    x = keras.Input((8, 8, 2))
    h = bayesnorm.WeightNormalization(layers.Conv2D(6, 3, name="conv"))(x)
    h = layers.ReLU()(bayesnorm.StochasticScaleNorm(name="scale")(h))
    h = bayesnorm.AnalyticNormalization(
        layers.Dense(5), name="an", input_mean=0.2, input_variance=1.5
    )(layers.GlobalAveragePooling2D()(h))
    h = bayesnorm.ScaleNorm(name="last")(h)
    model = with_biases(keras.Model(x, layers.Dense(2)(h)))
    keep = {"scale": dead(6, 0, 3), "an": dead(5, 1)}
    pruned, _report = bayesnorm.prune(model, keep=keep)
    kinds = {x.name: type(x) for x in pruned.layers}
    assert kinds["an"] is layers.Dense
    assert pruned.get_layer("an").units == 4
    assert kinds["scale"] is bayesnorm.StochasticScaleNorm
    assert pruned.get_layer("scale").rho.shape == (4,)


def test_stochastic_batch_normalization_is_thinned_with_its_law(rng):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, name="hidden"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Dense(3),
        ]
    )
    data = rng.normal(size=(128, 6)).astype("float32")
    stochastic = bayesnorm.to_stochastic(model, seed=1)
    bayesnorm.calibrate(stochastic, data, batch_size=16, verbose=False)
    mask = dead(8, 2, 5)
    pruned, _ = bayesnorm.prune(stochastic, keep={"norm": mask})
    norm, thin = stochastic.get_layer("norm"), pruned.get_layer("norm")
    for name in ("mu_mean", "mu_variance", "log_variance_mean"):
        np.testing.assert_array_equal(
            values(getattr(thin, name)), values(getattr(norm, name))[mask]
        )
    sampled = bayesnorm.predict(
        pruned, data, samples=4, seed=0, from_logits=True, verbose=False
    )
    assert sampled.mutual_information.mean() > 0


# --- what can be done with the result ------------------------------------------------


def test_it_saves_converts_and_trains(tmp_path, rng):
    x = keras.Input((8, 8, 3))
    h = layers.Conv2D(8, 3, use_bias=False, name="a")(x)
    h = s = layers.ReLU()(layers.BatchNormalization()(h))
    h = layers.Conv2D(8, 3, padding="same", activation="relu", name="b")(h)
    h = layers.GlobalAveragePooling2D()(layers.Add()([h, s]))
    model = keras.Model(x, layers.Dense(3, name="out")(h))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    masks = {"a": rng.random(8) > 0.5, "b": rng.random(8) > 0.5}
    pruned, _ = bayesnorm.prune(model, keep=masks)
    path = tmp_path / "pruned.keras"
    pruned.save(path)
    loaded = keras.models.load_model(path)
    close(pruned, loaded, tolerance=0)
    images = rng.normal(size=(32, 8, 8, 3)).astype("float32")
    stochastic = bayesnorm.to_stochastic(loaded)
    close(pruned, stochastic, tolerance=0)
    labels = rng.integers(0, 3, 32)
    before = loaded.evaluate(images, labels, verbose=0)
    loaded.fit(images, labels, epochs=5, verbose=0)  # Compiled as the old one.
    assert loaded.evaluate(images, labels, verbose=0) < before


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="SavedModel")
def test_it_exports(tmp_path, rng):
    import tensorflow as tf

    model = sbp_network(True)
    pruned, _ = bayesnorm.prune(model)
    pruned.export(tmp_path / "served", verbose=False)
    images = rng.normal(size=(2, 8, 8, 2)).astype("float32")
    served = tf.saved_model.load(tmp_path / "served")
    found = values(served.serve(images))
    np.testing.assert_allclose(found, values(model(images)), rtol=1e-4, atol=1e-4)


def test_report_and_latency(tmp_path):
    _pruned, report = bayesnorm.prune(sbp_network(True))
    report.write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "kept_channels.png" in text
    assert "batch 100, before" in text
    assert (tmp_path / "kept_channels.png").stat().st_size > 1000
    assert "conv" in str(report)
    assert "times fewer MACs" in str(report)


def test_magnitude_masks_keep_the_largest_filters():
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, name="a"), layers.Dense(2, name="b")]
    )
    kernel = np.ones((5, 4)) * [3.0, 0.1, 2.0, 0.2]
    model.get_layer("a").kernel.assign(kernel)
    masks = magnitude_masks(model, 0.5)
    assert masks["a"].tolist() == [True, False, True, False]
    assert "b" not in masks
    assert magnitude_masks(model, {"a": 0.75})["a"].sum() == 3
    with pytest.raises(ValueError, match="fraction"):
        magnitude_masks(model, 0.0)


def test_filters_that_are_zero_go_without_masks():
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, name="a"), layers.Dense(2)]
    )
    kernel = model.get_layer("a").kernel
    kernel.assign(kernel * np.array([1.0, 0.0, 1.0, 1.0], "float32"))
    assert bayesnorm.prune(model)[1].kept["a"] == (3, 4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = sbp_network(True)
        pruned, report = bayesnorm.prune(model)
    finally:
        keras.config.set_dtype_policy("float32")
    assert pruned.get_layer("conv").compute_dtype == policy.removeprefix("mixed_")
    assert pruned.get_layer("conv").kernel.dtype == "float32"
    assert report.kept["conv"][0] < 6


def test_the_model_itself_stays_as_it_is():
    model = sbp_network(True)
    before = [values(v) for v in model.weights]
    bayesnorm.prune(model)
    for a, b in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(a, values(b))


# --- errors --------------------------------------------------------------------------


def dense_model():
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, name="a"), layers.Dense(2, name="b")]
    )


def test_errors():
    model = dense_model()
    with pytest.raises(ValueError, match="nothing to prune"):
        bayesnorm.prune(model)
    with pytest.raises(ValueError, match="'a' must be 4 booleans"):
        bayesnorm.prune(model, keep={"a": np.ones(5, bool)})
    with pytest.raises(ValueError, match="booleans"):
        bayesnorm.prune(model, keep={"a": np.array([0.5, 1, 1, 1])})
    with pytest.raises(ValueError, match=r"'c'.*'a'"):
        bayesnorm.prune(model, keep={"c": np.ones(4, bool)})
    with pytest.raises(ValueError, match="criterion"):
        bayesnorm.prune(model, criterion="magic")
    with pytest.raises(ValueError, match="round_to"):
        bayesnorm.prune(model, keep={"a": dead(4, 0)}, round_to=0)
    with pytest.raises(TypeError, match=r"keras\.Model"):
        bayesnorm.prune("model")


def test_weights_that_are_not_finite():
    model = dense_model()
    model.get_layer("a").bias.assign([1.0, np.nan, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"bias.*'a' is not finite"):
        bayesnorm.prune(model, keep={"a": dead(4, 0)})


def test_a_subclassed_model_shows_no_graph():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="has no graph"):
        bayesnorm.prune(Own())
