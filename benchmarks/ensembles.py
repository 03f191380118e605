"""Ensembles of one architecture: compiled and exported once, against once a member.

```
python -m benchmarks.ensembles --output=benchmarks/results/ensembles
KERAS_BACKEND=jax python -m benchmarks.ensembles     # JAX, in its own environment
```

`predict` of an ensemble takes turns with predictions of its members one by one, which
are averaged. The first prediction is that of models made anew for each turn, and so
compiles; what is traced is counted by a layer inside. With TensorFlow, `export` of the
ensemble takes turns with exports of its members. Ratios are taken turn by turn. Weights
are random: neither time nor size depends on them.
"""

import pathlib
import tempfile
import time
import warnings

import keras
import numpy as np
from absl import app, flags

import bayesnorm
from benchmarks import timing
from trainers import flags as trainer_flags

_NETWORKS = flags.DEFINE_list("networks", ["lenet5", "all_cnn"], "Networks.")
_WIDTH = flags.DEFINE_float("width", 0.125, "Width factor.", 0.01)
_MEMBERS = flags.DEFINE_integer("members", 6, "Members.", 2)
_SAMPLES = flags.DEFINE_integer("samples", 10, "Samples of a member.", 1)
_EXAMPLES = flags.DEFINE_integer("examples", 64, "Examples to predict.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the table and figures.")

_ONE_BY_ONE, _ENSEMBLE = "a member at a time", "ensemble"


class Traced(keras.layers.Layer):
    """Counts how often it is called: by `predict`, when something is traced."""

    count = 0

    def call(self, inputs):
        """Returns the inputs."""
        Traced.count += 1
        return inputs


def network(name, seed):
    """A network, as its paper samples it, with a layer that counts its tracings."""
    if name == "lenet5":
        shape = (28, 28, 1)
        model = bayesnorm.models.lenet5(
            shape, norm="stochastic_batch", width=_WIDTH.value, seed=seed
        )
        images = np.random.default_rng(seed).uniform(size=(64, *shape))
        with warnings.catch_warnings():
            # Of an untrained network the moving averages are no statistics.
            warnings.simplefilter("ignore")
            bayesnorm.calibrate(model, images, batch_size=16, verbose=False)
    else:
        model = bayesnorm.models.all_cnn(
            projection=False, width=_WIDTH.value, seed=seed
        )
    return keras.Model(model.input, Traced()(model.output), name=name)


def members(name):
    """A list of networks of one architecture and other weights."""
    return [network(name, seed) for seed in range(_MEMBERS.value)]


def predictions(models, x):
    """Returns the candidates for `timing`, functions that give the probabilities."""

    def predicted(model):
        return bayesnorm.predict(
            model, x, _SAMPLES.value, seed=0, from_logits=True, verbose=False
        ).probs

    return {
        _ONE_BY_ONE: lambda: np.mean([predicted(model) for model in models], axis=0),
        _ENSEMBLE: lambda: predicted(models),
    }


def first_predictions(name, x):
    """Times the first prediction of new models; returns seconds and tracings."""
    seconds = {_ONE_BY_ONE: [], _ENSEMBLE: []}
    traced = {}
    for _ in range(_ROUNDS.value):
        for candidate, values in seconds.items():
            run = predictions(members(name), x)[candidate]
            before = Traced.count
            start = time.perf_counter()
            run()
            values.append(time.perf_counter() - start)
            traced[candidate] = Traced.count - before
    return seconds, traced


def exports(models, folder):
    """Returns the candidates that write SavedModels, and a dict of their folders."""
    folders = {key: folder / str(i) for i, key in enumerate((_ONE_BY_ONE, _ENSEMBLE))}
    turns = dict.fromkeys(folders, 0)

    def export(candidate, whole):
        path = folders[candidate] / str(turns[candidate])
        turns[candidate] += 1
        for i, model in enumerate(whole):
            bayesnorm.export(model, path / str(i), _SAMPLES.value, from_logits=True)

    return {
        _ONE_BY_ONE: lambda: export(_ONE_BY_ONE, models),
        _ENSEMBLE: lambda: export(_ENSEMBLE, [models]),
    }, folders


def bytes_in(folder):
    """The bytes of all files in a folder."""
    return sum(x.stat().st_size for x in folder.rglob("*") if x.is_file())


def compare(name):
    """Yields the summaries of a network."""
    title = f"{name}, width {_WIDTH.value:g}, {_MEMBERS.value} members"
    models = members(name)
    shape = (_EXAMPLES.value, *models[0].input_shape[1:])
    x = np.random.default_rng(0).uniform(size=shape).astype("float32")
    seconds, traced = first_predictions(name, x)
    summary = timing.summarize(f"{title}: first prediction", seconds, _ONE_BY_ONE)
    yield summary | {"tracings": traced}
    candidates = predictions(models, x)
    seconds = timing.take_turns(candidates, _ROUNDS.value)
    yield timing.summarize(f"{title}: later predictions", seconds, _ONE_BY_ONE)
    if keras.backend.backend() != "tensorflow":
        return
    with tempfile.TemporaryDirectory() as folder:
        candidates, folders = exports(models, pathlib.Path(folder))
        seconds = timing.take_turns(candidates, _ROUNDS.value, warmup=0)
        sizes = {key: bytes_in(each / "0") for key, each in folders.items()}
    summary = timing.summarize(f"{title}: export", seconds, _ONE_BY_ONE)
    yield summary | {"bytes": sizes}


def described(summary):
    """Returns the table of a summary, and what else was counted."""
    lines = [timing.table(summary)]
    if "tracings" in summary:
        counts = ", ".join(f"{k} {n}" for k, n in summary["tracings"].items())
        lines.append(f"Calls of the network that were traced: {counts}.\n")
    if "bytes" in summary:
        sizes = ", ".join(f"{k} {n / 2**20:.2f}" for k, n in summary["bytes"].items())
        lines.append(f"MiB on disk: {sizes}.\n")
    return "\n".join(lines)


def main(argv):
    """Runs the comparison."""
    del argv
    results = []
    for name in _NETWORKS.value:
        for summary in compare(name):
            results.append(summary)
            print(described(summary), flush=True)
            _write(results)


def _write(results):
    if _OUTPUT.value is None:
        return
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    timing.write(folder / "metrics.json", results)
    command = trainer_flags.command()
    head = (
        f"# Ensembles: compiled once, against once a member\n\n    {command}\n\n"
        f"On {timing.hardware()}, Keras {keras.version()}; "
        f"{_EXAMPLES.value} examples, {_SAMPLES.value} samples of a member.\n\n"
    )
    (folder / "report.md").write_text(
        head + "\n".join(described(summary) for summary in results)
    )


if __name__ == "__main__":
    app.run(main)
