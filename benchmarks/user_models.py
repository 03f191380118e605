"""Random networks such as people bring, through everything that is done to a network.

```
python -m benchmarks.user_models --jobs 2 --output benchmarks/results/user_models
```

Each network is converted, calibrated, predicted with by every method, saved, loaded
and (with TensorFlow) exported. A step is *right* if what it gives is what Keras, or the
step before, says it must be; *refused* if it ends with an error that names a layer, an
output or an argument; else it is *wrong*. The command ends with exit code 1 if any is.
Networks that the folder has are not run again, so that a broken run goes on: after a
change of the code give another folder.
"""

import collections
import json
import pathlib
import re
import sys
import tempfile
import warnings

import joblib
import keras
import numpy as np
from absl import app, flags
from keras import layers, ops

import bayesnorm
from benchmarks import timing
from trainers import flags as trainer_flags
from trainers.report import tables

_MODELS = flags.DEFINE_integer("models", 200, "Number of networks.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the first; the next is one higher.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Networks at a time.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the table.")

_EXAMPLES, _BATCH = 40, 10
_FLAGS = [{}, {"training": True}, {"training": False}]
_FIELDS = ("probs", "entropy", "mutual_information", "mean", "variance")


# --- networks ------------------------------------------------------------------------


def _vectors(rng, name="vectors"):
    x = inputs = keras.Input((6,), name=name)
    for _ in range(rng.integers(1, 4)):
        x = _hidden(
            rng,
            x,
            lambda x: layers.Dense(8, activation=_activation(rng))(x),
            lambda x: layers.Add()([x, layers.Dense(int(x.shape[-1]))(x)]),
            lambda x: layers.Multiply()(
                [x, layers.Dense(int(x.shape[-1]), "sigmoid")(x)]
            ),
            lambda x: ops.concatenate([x, ops.square(x)], -1),
            lambda x: layers.LayerNormalization()(x),
        )
    return [inputs], x


def _images(rng):
    x = inputs = keras.Input((12, 12, 3), name="images")
    if rng.random() < 0.5:
        x = layers.RandomFlip(seed=1)(layers.Rescaling(0.5)(x))
    for _ in range(rng.integers(1, 4)):
        x = _hidden(
            rng,
            x,
            lambda x: layers.Conv2D(6, 3, padding="same")(x),
            lambda x: layers.SeparableConv2D(6, 3, padding="same")(x),
            lambda x: layers.DepthwiseConv2D(3, padding="same")(x),
            lambda x: layers.MaxPooling2D(padding="same")(x),
            lambda x: layers.AveragePooling2D(2, padding="same")(x),
            lambda x: _squeeze_and_excite(x),
            lambda x: layers.GroupNormalization(1)(x),
        )
    pooling = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D, layers.Flatten)
    return [inputs], pooling[rng.integers(3)]()(x)


def _squeeze_and_excite(x):
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(int(x.shape[-1]), 1, activation="sigmoid")(gate)
    return layers.Multiply()([x, gate])


def _words(rng):
    inputs = keras.Input((7,), dtype="int32", name="words")
    x = layers.Embedding(9, 6, mask_zero=bool(rng.random() < 0.3))(inputs)
    for _ in range(rng.integers(1, 3)):
        x = _hidden(
            rng,
            x,
            lambda x: layers.GRU(6, return_sequences=True)(x),
            lambda x: layers.Bidirectional(layers.LSTM(3, return_sequences=True))(x),
            lambda x: layers.Conv1D(6, 3, padding="same")(x),
            lambda x: layers.MultiHeadAttention(2, 3)(x, x),
            lambda x: layers.TimeDistributed(layers.Dense(6))(x),
        )
    return [inputs], layers.GlobalAveragePooling1D()(x)


def _hidden(rng, x, *makes):
    """One layer of those that fit, a normalization, perhaps noise, an activation."""
    x = makes[rng.integers(len(makes))](x)
    if rng.random() < 0.7:
        x = layers.BatchNormalization()(x, **_FLAGS[rng.integers(3)])
    if rng.random() < 0.3:
        noises = layers.Dropout(0.3), layers.GaussianNoise(0.2)
        x = noises[rng.integers(2)](x, **_FLAGS[rng.integers(3)])
    return layers.Activation(_activation(rng))(x)


def _own_activation(x):
    return x * ops.sigmoid(2.0 * x)


def _activation(rng):
    kinds = ["relu", "tanh", "gelu", "swish", "elu", ops.softplus, _own_activation]
    return kinds[rng.integers(len(kinds))]


def _heads(rng, x):
    """Outputs and their tasks, with losses that say what they are."""
    binary = keras.losses.BinaryCrossentropy(from_logits=True)
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    kinds = [
        (3, "softmax", "classification", "sparse_categorical_crossentropy"),
        (3, None, "classification", sparse),
        (1, "sigmoid", "classification", "binary_crossentropy"),
        (4, None, "multilabel", binary),
        (2, None, "regression", "mse"),
    ]
    number = 1 if rng.random() < 0.7 else 2
    chosen = [kinds[i] for i in rng.permutation(len(kinds))[:number]]
    outputs = [
        layers.Dense(units, activation=activation, name=f"head_{i}")(x)
        for i, (units, activation, _, _) in enumerate(chosen)
    ]
    return outputs, [task for *_, task, _ in chosen], [loss for *_, loss in chosen]


def make(seed):
    """Returns `(model, inputs, task, from_logits)` of a random network.

    `from_logits` says of each output what the losses say to the package.
    """
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    bodies = (_vectors, _images, _words)
    inputs, x = bodies[rng.integers(3)](rng)
    if rng.random() < 0.3:  # A second input.
        more, y = _vectors(rng, "more")
        inputs, x = [*inputs, *more], layers.Concatenate()([x, y])
    x = layers.BatchNormalization()(layers.Dense(8)(x))
    if rng.random() < 0.4:
        nested = keras.Input((8,))
        body = layers.BatchNormalization()(layers.Dense(8, "relu")(nested))
        x = keras.Model(nested, body)(x, **_FLAGS[rng.integers(3)])
    outputs, tasks, losses = _heads(rng, x)
    one = len(outputs) == 1
    model = keras.Model(
        inputs[0] if len(inputs) == 1 else inputs, outputs[0] if one else outputs
    )
    model.compile(loss=losses[0] if one else losses)
    data = [
        rng.integers(1, 9, size=(_EXAMPLES, *x.shape[1:]))
        if x.dtype == "int32"
        else rng.normal(size=(_EXAMPLES, *x.shape[1:])).astype("float32")
        for x in inputs
    ]
    model.fit(data if len(data) > 1 else data[0], _labels(model, tasks, rng), verbose=0)
    task = tasks[0] if one else {f"head_{i}": t for i, t in enumerate(tasks)}
    from_logits = [getattr(loss, "from_logits", False) for loss in losses]
    return model, data if len(data) > 1 else data[0], task, from_logits


def _labels(model, tasks, rng):
    labels = []
    for output, task in zip(model.outputs, tasks, strict=True):
        units = output.shape[-1]
        if task == "classification" and units > 1:
            labels.append(rng.integers(0, units, size=_EXAMPLES))
        else:
            labels.append(rng.integers(0, 2, size=(_EXAMPLES, units)).astype("float32"))
    return labels if len(labels) > 1 else labels[0]


def _stream(x, kind):
    """The inputs in one of the forms that data come in."""
    if kind == "arrays":
        return x
    starts = range(0, _EXAMPLES, _BATCH)
    batches = [
        keras.tree.map_structure(lambda a, i=i: a[i : i + _BATCH], x) for i in starts
    ]
    if kind == "tuples":
        return ((batch, np.zeros(_BATCH)) for batch in batches)
    if kind == "tf.data":
        import tensorflow as tf

        x = tuple(x) if isinstance(x, list) else x
        labels = np.zeros(_EXAMPLES)
        return tf.data.Dataset.from_tensor_slices((x, labels)).batch(_BATCH)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return len(batches)

        def __getitem__(self, i):
            return batches[i], np.zeros(_BATCH)

    return Batches()


# --- steps ---------------------------------------------------------------------------


def check(seed):
    """Returns `{step: "right", "refused: ..." or "wrong: ..."}` of one network."""
    model, x, task, from_logits = make(seed)
    rng = np.random.default_rng(seed)
    kinds = ["arrays", "tuples", "PyDataset"]
    kinds += ["tf.data"] * (keras.backend.backend() == "tensorflow")
    kind = kinds[rng.integers(len(kinds))]
    expected = keras.tree.flatten(model.predict(x, verbose=0))
    few = keras.tree.map_structure(lambda a: a[:4], x)
    outcome, state = {}, {"model": model}

    def step(name, function):
        outcome[name] = _outcome(function)
        return outcome[name] == "right"

    def convert():
        state["model"] = bayesnorm.to_stochastic(model, dropout=True, seed=0)
        _equal(keras.tree.flatten(state["model"].predict(x, verbose=0)), expected)

    def calibrate():
        # Frozen: some nodes call with training=False in layers of their own code.
        bayesnorm.calibrate(
            state["model"], _stream(x, kind), _BATCH, verbose=False, frozen=True
        )
        _equal(keras.tree.flatten(state["model"].predict(x, verbose=0)), expected)

    def predict(data=x, **arguments):
        found = bayesnorm.predict(
            state["model"], data, 5, seed=3, task=task, verbose=False, **arguments
        )
        return [found] if isinstance(found, bayesnorm.Prediction) else [*found.values()]

    def sample():
        whole, part = predict(), predict(few)
        _same([_cut(p, 4) for p in whole], part, 1e-4)
        _same(predict(_stream(x, kind)), whole, 1e-4)
        for p in whole:
            _meaningful(p)

    def mean():
        for p, *said in zip(predict(method="mean"), expected, from_logits, strict=True):
            _is_of(p, *said)

    def moments():
        for p in predict(method="moments"):
            _meaningful(p)

    def minibatch():
        for p in predict(method="minibatch", train_data=x, train_batch_size=_BATCH):
            _meaningful(p)

    def save(folder):
        path = pathlib.Path(folder, "model.keras")
        before = predict(few)
        state["model"].save(path)
        state["model"] = keras.models.load_model(
            path, custom_objects={"_own_activation": _own_activation}
        )
        _same(predict(few), before, 1e-4)

    def export(folder):
        import tensorflow as tf

        path = pathlib.Path(folder, "served", "1")
        bayesnorm.export(state["model"], path, samples=5, task=task)
        served = tf.saved_model.load(path).signatures["seeded"]
        names = [t.name for t in state["model"].inputs]
        flat = keras.tree.flatten(few)
        names = ["inputs"] if len(flat) == 1 else names
        arguments = {
            n: tf.cast(a, t.dtype)
            for n, a, t in zip(names, flat, state["model"].inputs, strict=True)
        }
        got = served(**arguments, seed=np.full(4, 3))
        for i, p in enumerate(predict(few)):
            prefix = f"head_{i}_" if isinstance(task, dict) else ""
            for name in _FIELDS:
                if getattr(p, name) is not None:
                    _equal([got[prefix + name]], [getattr(p, name)], 1e-4)

    with tempfile.TemporaryDirectory() as folder:
        if step("convert", convert) and step("calibrate", calibrate):
            step("sample", sample)
            step("mean", mean)
            step("moments", moments)
            step("minibatch", minibatch)
            step("save and load", lambda: save(folder))
            if keras.backend.backend() == "tensorflow":
                step("export", lambda: export(folder))
    keras.backend.clear_session()
    return outcome


def _outcome(function):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function()
    except AssertionError as error:
        return f"wrong: {' '.join(str(error).split())[:200]}"
    except (ValueError, TypeError, NotImplementedError) as error:
        message = str(error)
        named = re.search(r"'\w+'|`\w+`|[Ll]ayer \w+|[a-z_]+=", message)
        kind = "refused" if named else f"wrong: {type(error).__name__}"
        return f"{kind}: {' '.join(message.split())[:200]}"
    except Exception as error:  # What nobody meant to raise.
        return f"wrong: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "right"


def _equal(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.abs(b).max()))


def _same(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        for name in _FIELDS:
            if getattr(b, name) is not None:
                _equal([getattr(a, name)], [getattr(b, name)], tolerance)


def _cut(prediction, rows):
    values = {
        name: None if value is None else value[:rows]
        for name, value in vars(prediction).items()
    }
    return bayesnorm.Prediction(**values)


def _hold(what, condition):
    if not np.all(condition):
        raise AssertionError(f"does not hold: {what}")


def _meaningful(prediction):
    """Probabilities are some, and entropies and variances in their bounds."""
    if prediction.probs is None:
        _hold("finite means", np.isfinite(prediction.mean))
        _hold("variance >= 0", prediction.variance >= 0)
        return
    labels = prediction.entropy.ndim == prediction.probs.ndim
    classes = 2 if labels else prediction.probs.shape[-1]
    if not labels:
        _equal([prediction.probs.sum(-1)], [np.ones(len(prediction))])
    entropy, information = prediction.entropy, prediction.mutual_information
    _hold("entropy <= log(classes)", entropy <= np.log(classes) + 1e-5)
    _hold("information <= entropy", information <= entropy + 1e-5)
    _hold("information >= 0", information >= 0)


def _is_of(prediction, outputs, from_logits):
    """The prediction of one network says what the model's output does."""
    if prediction.probs is None:
        _equal([prediction.mean], [outputs])
        return
    probs = prediction.probs
    if prediction.entropy.ndim < probs.ndim and outputs.shape[-1] == 1:
        probs = probs[..., 1:]
    if from_logits:
        several = prediction.entropy.ndim < prediction.probs.ndim
        if several and outputs.shape[-1] > 1:
            outputs = ops.convert_to_numpy(ops.softmax(outputs))
        else:
            outputs = 1.0 / (1.0 + np.exp(-outputs))
    _equal([probs], [outputs], 1e-4)


# --- table ---------------------------------------------------------------------------


def main(argv):
    """Prints the table, and writes it where asked."""
    del argv
    folder = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else None
    found = _earlier(folder)
    seeds = range(_SEED.value, _SEED.value + _MODELS.value)
    missing = [seed for seed in seeds if seed not in found]
    outcomes = joblib.Parallel(_JOBS.value, return_as="generator")(
        joblib.delayed(check)(seed) for seed in missing
    )
    for seed, of_seed in zip(missing, outcomes, strict=True):
        found[seed] = of_seed
        for step, outcome in of_seed.items():
            if outcome != "right":
                print(f"{seed} {step}: {outcome}", flush=True)
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            page, text = _page(found, len(seeds)), json.dumps(found, indent=1)
            (folder / "report.md").write_text(page)
            (folder / "outcomes.json").write_text(text + "\n")
    print(_page(found, len(seeds)))
    if any(_kind(x) == "wrong" for of_seed in found.values() for x in of_seed.values()):
        sys.exit(1)


def _earlier(folder):
    """What the folder has, seed -> step -> outcome."""
    path = folder and folder / "outcomes.json"
    if not (path and path.exists()):
        return {}
    return {int(seed): x for seed, x in json.loads(path.read_text()).items()}


def _kind(outcome):
    return outcome.partition(":")[0]


def _page(found, number):
    command = trainer_flags.command()
    counts, reasons = collections.defaultdict(collections.Counter), []
    for of_seed in found.values():
        for step, outcome in of_seed.items():
            counts[step][_kind(outcome)] += 1
            if outcome != "right":
                reasons.append(f"{step}: " + re.sub(r"\d+", "n", outcome)[:140])
    rows = [
        [step, *(f"{count[kind]}" for kind in ("right", "refused", "wrong"))]
        for step, count in counts.items()
    ]
    settings = f"Keras {keras.__version__} on {keras.backend.backend()}"
    return "\n".join(
        [
            "# Random networks through every step",
            "",
            f"`{command}`",
            "",
            f"{len(found)} of {number} networks; {settings}, {timing.hardware()}.",
            "",
            tables.table(["step", "right", "refused by name", "wrong"], rows),
            "",
            *(f"- {n} x {x}" for x, n in collections.Counter(reasons).most_common()),
            "",
        ]
    )


if __name__ == "__main__":
    app.run(main)
