"""A SavedModel that a model server runs without Python."""

import os
import pathlib

import keras
import numpy as np

from bayesnorm.arguments import positive_integer
from bayesnorm.graph import apply, compiled_for
from bayesnorm.layers.noise import noise_mode, stochastic_layers
from bayesnorm.prediction.members import members_of
from bayesnorm.prediction.memory import ROWS, rows_that_fit
from bayesnorm.prediction.networks import Noise, check_any_batch
from bayesnorm.prediction.tasks import temperatures_of
from bayesnorm.prediction.weight_sets import WeightSets, built_model
from bayesnorm.serving.described import (
    check_tensorflow,
    described_outputs,
    signature_of,
)
from bayesnorm.storage import drafted

_README = """# {name}

A TensorFlow SavedModel that answers with Monte Carlo uncertainty: {networks} networks
for each example{members}. It needs no Python to run. From this folder:

```shell
tensorflow_model_server --rest_api_port=8501 --model_name={name} \\
  --model_base_path="$(dirname "$PWD")"
```

TensorFlow Serving takes the folders of `model_base_path` whose names are integers
for the versions of the model; this one is `{folder}`.

```shell
curl http://localhost:8501/v1/models/{name}:predict \\
  -d '{{"signature_name": "serving_default", "inputs": ...}}'
```

## Signatures

Inputs of all:

{inputs}

| Signature | Outputs | |
| --- | --- | --- |
| `serving_default` | {outputs} | fresh noise for every example and call |
| `seeded` | {outputs} | takes `seed` too, int64 `[batch]`: an example's answer repeats with its seed, whatever else is in the batch |
| `samples` | {kept}: `[batch, {networks}, ...]` | the answer of each network, with fresh noise |
| `mean` | {mean} | {what_mean} |

Every input and output has the batch as its first axis. Entropy and mutual information are in nats.{tempered}
"""  # noqa: E501


def export(
    model,
    path,
    samples=30,
    from_logits=None,
    task="classification",
    chunk_size=None,
    temperature=None,
):
    """Writes a SavedModel that answers with Monte Carlo uncertainty.

    Each example of a request is predicted by `samples` networks of its own. The
    part of the model before the first noise runs once. Signatures, all with the
    batch as the first axis of every input and output:

    - `serving_default`: inputs to `probs` `[batch, ..., classes]`, `entropy` and
      `mutual_information` `[batch, ...]` (see `bayesnorm.predict`), with fresh
      noise on every call, also after a restart and under concurrent requests;
    - `seeded`: the same with `seed`, int64 `[batch]`. The noise of an example is a
      function of its seed alone: the answer repeats, whatever else is in the
      batch, up to the rounding of kernels that depend on the batch size (about
      1e-6); it is that of `predict(model, x, samples, seed=seed)`;
    - `samples`: `samples` `[batch, samples, ..., classes]`, fresh noise;
    - `mean`: `probs` and `entropy` of the network of mean weights.

    An ensemble is one graph, which runs in turn with the weights of each member; all
    weigh the same. Its `mean` is `predict(ensemble, x, method="mean")`, with the
    `mutual_information` (or `variance`) between the members as well.

    With `task="regression"` the outputs are `mean` and `variance`; with
    `task="multilabel"` each label has its probability, entropy and mutual information.
    A model of several outputs has these entries for each, with its name before them:
    `age_mean`, `age_variance`.

    A single input is called `inputs`, several by the names of the model's Inputs.
    A README.md in the folder tells how to serve it. Of these signatures TensorFlow Lite
    converts `mean` of a single model alone: it has no operations that draw noise from a
    seed, and fails on some members in a loop.

    Args:
        model: A built model, or an ensemble: `bayesnorm.WeightSets`, or a list of
            models of one architecture.
        path: The folder to make, for a server an integer (the version) inside the
            folder of the model: `workdir/saved_model/1`. It appears complete, or
            not at all.
        samples: Number of networks, of an ensemble for each member: an answer is of
            `members * samples`, with which `samples` has its second axis. A model that
            draws no noise has one.
        from_logits: As for `bayesnorm.predict`.
        task: As for `bayesnorm.predict`.
        chunk_size: Rows (networks times examples) of one pass through the
            network, which bounds the memory of a request; at least its examples. None:
            1024, but no more than take about 1 GiB (1024 where the model leaves the
            shape of an example open).
        temperature: As for `bayesnorm.predict`: `probs` and `entropy` are of
            `softmax(log p / T)`, p the average, in all signatures but `samples`, which
            has the networks as they are.

    Raises:
        TypeError: If `model` is something else.
        ValueError: If an argument is not as above, the models are not of one
            architecture or have other outputs, there is something at `path`,
            or the backend is not TensorFlow.
    """
    check_tensorflow("A SavedModel")
    samples = positive_integer("samples", samples)
    if chunk_size is not None:
        chunk_size = positive_integer("chunk_size", chunk_size)
    model, sets, found = _ensemble(model, task, from_logits)
    temperatures, outputs = temperatures_of(found, temperature), found.each
    check_any_batch(model)
    for member in members_of(model if sets is None else sets):
        with member.scope():
            for layer in stochastic_layers(model):
                layer.check_noise()
    signature = signature_of(model)
    samples = samples if Noise(model).size else 1
    path = pathlib.Path(os.path.abspath(path))
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise ValueError(
            f"There is something at {path}, which is not overwritten. Export to a new "
            "folder (the next version of the model), or remove that one first."
        )
    from bayesnorm.serving import saved_model

    chunk_size = chunk_size or _rows_of_a_pass(model, signature)
    # A server that watches the folder must not see half a model.
    with drafted(path) as draft:
        draft.mkdir()
        weights = None if sets is None else sets.stacked()
        saved_model.write(
            model,
            weights,
            draft,
            signature,
            samples,
            outputs,
            temperatures,
            chunk_size,
        )
        members = 1 if sets is None else len(sets)
        readme = _readme(
            model, path, members, samples, signature, outputs, temperatures
        )
        (draft / "README.md").write_text(readme)


def _ensemble(model, task, from_logits):
    """Returns `(model, WeightSets or None, the Outputs)`."""
    if isinstance(model, WeightSets):
        return model.model, model, described_outputs(model.model, task, from_logits)
    if not isinstance(model, list | tuple):
        model = built_model(model)
        return model, None, described_outputs(model, task, from_logits)
    sets = WeightSets.of(model)
    found = [described_outputs(built_model(m), task, from_logits) for m in model]
    if any(outputs.each != found[0].each for outputs in found):
        raise ValueError(
            "The members of an ensemble must have the same outputs, all logits or all "
            f"probabilities. Received: {[outputs.each for outputs in found]}"
        )
    return sets.model, sets, found[0]


def _rows_of_a_pass(model, signature):
    if any(None in x.shape[1:] for x in keras.tree.flatten(signature)):
        return ROWS
    example = keras.tree.map_structure(_zeros, signature)
    return min(ROWS, rows_that_fit(model, compiled_for(model), _pass, (), example))


def _zeros(x):
    dtype = object if x.dtype == "string" else x.dtype
    return np.zeros((1, *x.shape[1:]), dtype)


def _pass(model):
    def step(batch):
        with noise_mode("mean"):
            return apply(model(), batch)

    return step


def _readme(model, path, members, samples, signature, outputs, temperatures):
    def entries(of_regression, of_probabilities):
        return ", ".join(
            f"`{output.entry(name)}`"
            for output in outputs
            for name in (
                of_regression if output.task == "regression" else of_probabilities
            )
        )

    inputs = "\n".join(
        f"- `{x.name}`: {x.dtype} `[{', '.join(['batch', *map(str, x.shape[1:])])}]`"
        for x in keras.tree.flatten(signature)
    )
    averaged = entries(("mean", "variance"), ("probs", "entropy", "mutual_information"))
    return _README.format(
        name=model.name,
        networks=members * samples,
        members="" if members == 1 else f", {samples} of each of {members} members",
        folder=path.name,
        inputs=inputs,
        outputs=averaged,
        mean=averaged if members > 1 else entries(("mean",), ("probs", "entropy")),
        what_mean=(
            "the one network of mean weights"
            if members == 1
            else "the average of the members' networks of mean weights"
        ),
        kept=entries(("samples",), ("samples",)),
        tempered=_tempered(outputs, temperatures),
    )


def _tempered(outputs, temperatures):
    found = ", ".join(
        f"`{output.entry('probs')}` {temperature:g}"
        for output, temperature in zip(outputs, temperatures, strict=True)
        if temperature != 1.0
    )
    if not found:
        return ""
    return (
        " Probabilities and entropies of the average are at a temperature, "
        f"softmax(log p / T): {found}; mutual information and samples are not."
    )
