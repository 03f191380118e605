"""The graph room: networks run as Keras runs them, copies that are what they copy."""

import functools
import inspect
import logging

import keras
import numpy as np
import pytest
from keras import layers, ops

import bayesnorm
from bayesnorm import backend
from bayesnorm.graph import (
    Index,
    compiled_for,
    first_difference,
    layers_of,
    rewrite,
    run,
)
from tests.helpers import long, randomized, with_augmentation, with_training_nodes


def values(model):
    return [np.array(ops.convert_to_numpy(v)) for v in model.variables]


# --- running -----------------------------------------------------------------------


@pytest.fixture(params=[with_augmentation, with_training_nodes])
def converted(request):
    """A calibrated network, and inputs."""
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    model = bayesnorm.to_stochastic(randomized(request.param()), seed=0)
    return bayesnorm.calibrate(model, x, batch_size=16, verbose=False), x[:6]


def test_predictions_are_of_inference_and_repeat(converted):
    """Augmentation and `training=True` in a node: what `model.predict` does."""
    model, x = converted
    before = values(model)
    expected = model.predict(x, verbose=0)
    for method in ("sample", "mean"):
        first, second = (
            bayesnorm.predict(model, x, 8, method, seed=3, verbose=False)
            for _ in range(2)
        )
        np.testing.assert_array_equal(first.probs, second.probs)
    np.testing.assert_allclose(
        bayesnorm.predict(model, x, method="mean", verbose=False).probs,
        expected,
        atol=1e-6,
    )
    # What an example is told does not depend on what else is in the batch.
    one = bayesnorm.predict(model, x[:1], 8, seed=3, verbose=False)
    all_ = bayesnorm.predict(model, x, 8, seed=3, verbose=False)
    np.testing.assert_allclose(one.probs, all_.probs[:1], atol=1e-5)
    assert all_.mutual_information.mean() > 1e-5
    for name, then, now in zip(
        [v.path for v in model.variables], before, values(model), strict=True
    ):
        np.testing.assert_array_equal(then, now, err_msg=name)


def test_networks_of_no_noise_are_the_model(converted):
    """Sampling with all draws 0 is evaluation at the mean of the statistics' law."""
    model, x = converted
    for layer in layers_of(model):
        if isinstance(layer, bayesnorm.StochasticBatchNormalization):
            layer.fix()
    expected = model.predict(x, verbose=0)
    for method in ("sample", "moments"):
        found = bayesnorm.predict(model, x, 3, method, seed=0, verbose=False)
        tolerance = 1e-6 if method == "sample" else 1e-5
        np.testing.assert_allclose(found.probs, expected, atol=tolerance)


def test_names_that_begin_with_an_underscore():
    model = keras.Sequential(
        [keras.Input((4,)), layers.BatchNormalization(name="_own"), layers.Dense(2)]
    )
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    stochastic = bayesnorm.to_stochastic(model)
    bayesnorm.calibrate(stochastic, x, batch_size=8, verbose=0)
    for each in (stochastic, bayesnorm.to_posterior(model)):
        for method in ("sample", "mean", "moments"):
            prediction = bayesnorm.predict(
                each, x, samples=3, method=method, from_logits=True
            )
            assert np.isfinite(prediction.probs).all()


def test_run_gives_each_call_its_arguments():
    x = inputs = keras.Input((4,))
    x = layers.Dropout(0.5)(x, training=True)
    x = ops.multiply(layers.Dense(3)(x), 2.0)
    model = keras.Model(inputs, x)
    seen = []

    def call(operation, *args, **kwargs):
        seen.append((type(operation).__name__, kwargs.get("training")))
        return operation(*args, **kwargs)

    data = np.ones((2, 4), "float32")
    outputs = run(model, data, call)
    assert seen == [("Dropout", False), ("Dense", False), ("Multiply", None)]
    np.testing.assert_allclose(
        ops.convert_to_numpy(outputs), model.predict(data, verbose=0), rtol=1e-6
    )


# --- the index ---------------------------------------------------------------------


def backbone():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, layers.ReLU(name="relu")(x), name="backbone")


def test_the_index_is_of_one_model():
    base = backbone()
    conv, norm = base.get_layer("conv"), base.get_layer("norm")
    # Another model takes the convolution's output as well.
    keras.Model(base.input, layers.Flatten()(conv.output))
    index = Index(base)
    (call,) = index.calls_of(conv)
    assert [c.operation for c in index.consumers(call.outputs[0])] == [norm]
    assert [c.operation for c in index.producers(call.outputs[0])] == [conv]
    assert not index.producers(call.inputs[0])
    assert not index.is_output(call.outputs[0])


def test_the_index_goes_through_nested_models_both_ways():
    base = backbone()
    inputs = keras.Input((8, 8, 3))
    before = layers.Conv2D(3, 1, name="before")
    shared = before(inputs), layers.ReLU(name="other")(inputs)
    ends = [
        layers.Conv2D(2, 1, name=f"after{i}")(base(x)) for i, x in enumerate(shared)
    ]
    index = Index(keras.Model(inputs, ends))
    (conv,) = index.calls_of(base.get_layer("conv"))
    assert {c.operation.name for c in index.producers(conv.inputs[0])} == {
        "before",
        "other",
    }
    (relu,) = index.calls_of(base.get_layer("relu"))
    assert {c.operation.name for c in index.consumers(relu.outputs[0])} == {
        "after0",
        "after1",
    }
    (first,) = index.calls_of(before)
    assert [c.operation.name for c in index.consumers(first.outputs[0])] == ["conv"]
    assert index.is_output(relu.outputs[0])


def test_projection_and_initialization_do_not_see_other_models():
    base = randomized(backbone())
    conv = base.get_layer("conv")
    keras.Model(base.input, layers.Flatten()(conv.output))
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    expected = base.predict(x, verbose=0)
    assert bayesnorm.project(base) == (["conv"], [])
    np.testing.assert_allclose(base.predict(x, verbose=0), expected, atol=1e-5)
    # In a model of the convolution alone nothing normalizes what it gives.
    head = keras.Model(base.input, conv.output)
    assert bayesnorm.data_dependent_init(head, x) == ["conv"]


# --- copies ------------------------------------------------------------------------


def leaky_relu(x):
    """Of another slope than Keras's function of this name."""
    return ops.leaky_relu(x, 0.01)


def network(activation):
    inputs = keras.Input((6,))
    x = layers.Dense(5, activation=activation, name="own")(inputs)
    x = layers.TimeDistributed(layers.Dense(4, activation=activation))(
        layers.Reshape((5, 1))(x)
    )
    x = layers.BatchNormalization()(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(2)(x))


@pytest.mark.parametrize(
    "function", [leaky_relu, ops.sin, lambda x: x * ops.sigmoid(3.0 * x)]
)
def test_functions_stay_what_they_are(function):
    model = randomized(network(function))
    copy = bayesnorm.to_stochastic(model)
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), copy.predict(x, verbose=0)
    )
    assert copy.get_layer("own").activation is function


@keras.saving.register_keras_serializable("test")
class Forgetful(layers.Layer):
    """Does not say in its configuration what it does."""

    factor = 1.0

    def call(self, x):
        return self.factor * x


def test_a_copy_that_computes_something_else_is_refused():
    forgets = Forgetful(name="forgets")
    forgets.factor = 2.0
    model = keras.Sequential(
        [keras.Input((3,)), layers.BatchNormalization(), forgets, layers.Dense(2)]
    )
    with pytest.raises(ValueError, match="from layer 'forgets'"):
        bayesnorm.to_stochastic(model)


def test_renormalization_is_refused_in_a_line():
    if "renorm" not in inspect.signature(layers.BatchNormalization).parameters:
        pytest.skip("this Keras has no renorm")
    model = keras.Sequential(
        [keras.Input((3,)), layers.BatchNormalization(renorm=True, name="renormalizes")]
    )
    with pytest.raises(ValueError, match="Received: renormalizes") as caught:
        bayesnorm.to_stochastic(model)
    assert len(str(caught.value)) < 250


def test_flags_of_nested_models_are_copied():
    base = backbone()
    base.trainable = False
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(base(inputs))))
    copy = bayesnorm.to_stochastic(model)
    assert not copy.get_layer("backbone").trainable
    assert len(copy.trainable_variables) == 2
    copy.get_layer("backbone").trainable = True
    assert len(copy.trainable_variables) == 6


def test_flags_inside_a_trainable_model_are_copied():
    base = backbone()
    base.get_layer("conv").trainable = False
    inputs = keras.Input((8, 8, 3))
    copy = bayesnorm.to_stochastic(keras.Model(inputs, base(inputs)))
    nested = copy.get_layer("backbone")
    assert nested.trainable
    assert not nested.get_layer("conv").trainable
    assert nested.get_layer("norm").trainable


@pytest.mark.parametrize("sequential", [False, True])
def test_a_layer_is_replaced_by_none_one_or_several(sequential, tmp_path):
    def make():
        stack = [
            layers.Dense(4, name="a"),
            layers.Dropout(0.5, name="b"),
            layers.Activation("tanh", name="c"),
            layers.Dense(2, name="d"),
        ]
        inner = keras.Sequential([keras.Input((3,)), *stack], name="inner")
        if sequential:
            return inner
        x = inputs = keras.Input((3,))
        for layer in stack:
            x = layer(x)
        return keras.Model(inputs, x)

    def replace(layer):
        return {
            "b": [],
            "c": [layers.ReLU(name="first"), layers.Activation("tanh", name="second")],
        }.get(layer.name)

    model = make()
    new = rewrite(model, replace)
    names = [layer.name for layer in new.layers if layer.name[:5] != "input"]
    assert names[-4:] == ["a", "first", "second", "d"]
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    a, d = model.get_layer("a"), model.get_layer("d")
    expected = ops.convert_to_numpy(d(ops.tanh(ops.relu(a(x)))))
    np.testing.assert_allclose(new.predict(x, verbose=0), expected, atol=1e-6)
    new.save(tmp_path / "new.keras")
    loaded = keras.models.load_model(tmp_path / "new.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)


def test_a_shared_layer_is_replaced_once():
    dense, inputs = layers.Dense(3, name="shared"), keras.Input((3,))
    model = keras.Model(inputs, dense(ops.relu(dense(inputs))))
    made = []

    def replace(layer):
        if layer.name != "shared":
            return None
        made.append(layers.Dense(3, name="shared"))
        return made

    new = rewrite(model, replace)
    assert len(made) == 1
    assert first_difference(model, new) is None
    made[0].bias.assign([1.0, 2.0, 3.0])
    assert first_difference(model, new) is dense


# --- nests and batches -------------------------------------------------------------


@pytest.mark.filterwarnings("error:The structure of `inputs`")
def test_a_loaded_model_is_given_its_nest(tmp_path):
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    inputs = keras.Input((3,))
    model = keras.Model([inputs], layers.BatchNormalization()(inputs))
    model = bayesnorm.to_stochastic(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    bayesnorm.calibrate(loaded, x, batch_size=2, verbose=False)
    arguments = {"task": "regression", "samples": 2, "verbose": False}
    for method in ("sample", "mean", "minibatch", "moments"):
        data = {"train_data": x} if method == "minibatch" else {}
        bayesnorm.predict(loaded, x, method=method, **arguments, **data)


def test_networks_that_need_a_batch_of_one_size_are_refused():
    x = np.ones((4, 5, 3), "float32")
    inputs = keras.Input(batch_shape=(4, 5, 3))
    fixed = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(inputs)), name="net")
    with pytest.raises(ValueError, match=r"'net' has Inputs of a fixed batch size \(4"):
        bayesnorm.predict(fixed, x, task="regression")
    stateful = keras.Sequential([layers.LSTM(2, stateful=True, name="keeps")])
    with pytest.raises(ValueError, match="keeps of model"):
        bayesnorm.predict(stateful, x, task="regression")


# --- compiled functions ------------------------------------------------------------


def counted(model, traces, factor):
    def function(x):
        traces.append(factor)
        return factor * model()(x, training=False)

    return function


class Traces(list):
    """A list that keys may hold."""

    __hash__ = object.__hash__


def test_a_function_is_compiled_once_until_the_model_changes():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    x, traces = np.ones((2, 3), "float32"), Traces()
    for _ in range(2):
        for factor in (1.0, 2.0):
            found = compiled_for(model).get(counted, traces, factor)(x)
            np.testing.assert_allclose(
                ops.convert_to_numpy(found), factor * model.predict(x, verbose=0)
            )
    assert traces == [1.0, 2.0]
    model.layers[0].bias.assign([1.0, 2.0])  # values are seen, not compiled in
    found = compiled_for(model).get(counted, traces, 1.0)(x)
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), model.predict(x, verbose=0), rtol=1e-6
    )
    assert traces == [1.0, 2.0]
    model.layers[0].trainable = False
    compiled_for(model).get(counted, traces, 1.0)(x)
    assert traces == [1.0, 2.0, 1.0]


@pytest.mark.tensorflow
def test_functions_of_many_models_are_no_retracing(monkeypatch):
    """TensorFlow counts tracings by the code of a function, which models share."""
    said = []
    monkeypatch.setattr(
        logging.getLogger("tensorflow"), "handle", lambda r: said.append(r.getMessage())
    )
    x = np.ones((2, 3), "float32")
    for seed in range(7):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
        compiled_for(model).get(counted, Traces(), 1.0)(x)
        loop = backend.compiled_loop(lambda i, total: total + 1.0, [])
        assert float(loop(0, 3, ops.convert_to_tensor(float(seed)))) == seed + 3
    assert not said
    # One function for ever new shapes is what it warns of.
    function = backend.compiled(lambda x: 2.0 * x, [])
    for size in range(1, 9):
        function(ops.ones((size,)))
    assert "retracing" in said[0]


def test_a_step_that_writes_leaves_what_it_wrote():
    model = keras.Sequential([keras.Input((3,)), layers.BatchNormalization()])
    x = np.random.default_rng(0).normal(3.0, 1.0, (16, 3)).astype("float32")

    def make(model):
        return lambda x: model()(x, training=True)

    step = compiled_for(model).get(make, writes=True)
    first = ops.convert_to_numpy(step(x))
    np.testing.assert_allclose(first.mean(0), 0.0, atol=1e-5)
    norm = model.layers[0]
    expected = (1 - norm.momentum) * x.mean(0)
    np.testing.assert_allclose(
        ops.convert_to_numpy(norm.moving_mean), expected, rtol=1e-5
    )


# --- random graphs -----------------------------------------------------------------

FLAGS = [{}, {"training": True}, {"training": False}, {"training": None}]


def random_graph(seed, depth=0):
    """Branches, shared layers, nested models, flags of training, several outputs."""
    rng = np.random.default_rng(seed)
    inputs = keras.Input((6,))
    tensors = [layers.Dense(6, activation="tanh")(inputs)]
    shared = [layers.Dense(6), layers.BatchNormalization()]
    for _ in range(rng.integers(3, 8)):
        x = tensors[rng.integers(len(tensors))]
        kind = rng.integers(8 if depth == 0 else 6)
        flag = FLAGS[rng.integers(4)]
        if kind == 0:
            x = layers.BatchNormalization()(x, **flag)
        elif kind == 1:
            x = layers.Dropout(0.5)(x, **flag)
        elif kind == 2:
            x = shared[0](x)
        elif kind == 3:
            x = shared[1](x, **flag)
        elif kind == 4:
            x = layers.Add()([x, tensors[rng.integers(len(tensors))]])
        elif kind == 5:
            x = ops.multiply(x, 0.5) + layers.GaussianNoise(0.3)(x, **flag)
        else:
            nested = random_graph(seed + 1000, depth + 1)
            x = nested(x, **flag)
            if kind == 7:
                x = nested(x[0] if isinstance(x, list) else x)
            x = layers.Average()(x) if isinstance(x, list) else x
        tensors.append(x)
    x = layers.BatchNormalization()(layers.Average()(tensors[-2:]))
    outputs = [layers.Dense(6)(x), tensors[-1], tensors[0]][: rng.integers(1, 4)]
    return keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0])


def random_sequence_graph(seed):
    """Layers that make, hand on, need and drop masks; a nested one of them."""
    rng = np.random.default_rng(seed)

    def stack(x):
        for _ in range(rng.integers(2, 5)):
            kind, flag = rng.integers(6), FLAGS[rng.integers(4)]
            if kind == 0:
                x = layers.GRU(4, return_sequences=True)(x, **flag)
            elif kind == 1:
                x = layers.TimeDistributed(layers.Dense(4, activation="tanh"))(x)
            elif kind == 2:
                x = layers.Add()([x, layers.MultiHeadAttention(2, 2)(x, x, **flag)])
            elif kind == 3:
                x = layers.Dropout(0.5)(x, **flag)
            elif kind == 4:
                x = layers.Add()([x, layers.BatchNormalization()(x, **flag)])
            else:
                x = layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True))(
                    x, **flag
                )
        return layers.BatchNormalization()(x)

    inputs = keras.Input((5,), dtype="int32")
    x = stack(layers.Embedding(7, 4, mask_zero=True)(inputs))
    nested = keras.Input((5, 4))
    x = keras.Model(nested, stack(layers.Masking()(nested)))(x)
    outputs = [layers.GlobalAveragePooling1D()(x), layers.LSTM(3)(stack(x))]
    return keras.Model(inputs, outputs)


def check_random_graph(model, x, methods):
    """Copied, calibrated, its noise taken out, every output is that of Keras."""
    copy = bayesnorm.to_stochastic(randomized(model), seed=0)
    expected = keras.tree.flatten(model.predict(x, verbose=0))
    for found, y in zip(
        keras.tree.flatten(copy.predict(x, verbose=0)), expected, strict=True
    ):
        np.testing.assert_allclose(found, y, atol=1e-6)
    bayesnorm.calibrate(copy, x, batch_size=3, verbose=False)
    for layer in layers_of(copy):
        if isinstance(layer, bayesnorm.StochasticBatchNormalization):
            layer.fix()
    before = values(copy)
    for output, y in zip(copy.outputs, expected, strict=True):
        one = keras.Model(copy.inputs, output)
        scale = max(1.0, np.abs(y).max())
        for method in methods:
            found = bayesnorm.predict(
                one, x, 2, method, seed=0, task="regression", verbose=False
            )
            tolerance = (1e-5 if method == "moments" else 1e-6) * scale
            np.testing.assert_allclose(found.mean, y, atol=tolerance)
            assert found.variance.max() < tolerance
    for then, now in zip(before, values(copy), strict=True):
        np.testing.assert_array_equal(then, now)


@pytest.mark.parametrize("seed", [*range(3), *map(long, range(3, 12))])
@pytest.mark.filterwarnings("ignore:Model .* has no layer that draws noise")
def test_random_graphs_are_copied_and_run_as_keras_does(seed):
    x = np.random.default_rng(seed).normal(size=(7, 6)).astype("float32")
    check_random_graph(random_graph(seed), x, ("sample", "moments"))


@pytest.mark.parametrize("seed", [2, *map(long, (0, 1, 3, 4, 5))])
@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
def test_random_graphs_with_masks_run_as_keras_does(seed):
    x = np.random.default_rng(seed).integers(1, 7, size=(7, 5))
    x[np.arange(5) >= np.arange(1, 8)[:, None] % 6] = 0
    check_random_graph(random_sequence_graph(seed), x, ("sample",))


def test_a_sequential_of_another_last_layer_is_compiled_anew(rng):
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(2), layers.Activation("softmax")]
    )
    x = rng.normal(size=(4, 3)).astype("float32")
    predict = functools.partial(
        bayesnorm.predict, x=x, method="mean", task="regression", verbose=False
    )
    predict(model)
    model.pop()
    model.add(layers.Activation("tanh"))
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(predict(model).mean, expected, atol=1e-6)
