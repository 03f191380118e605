"""A SavedModel that a model server runs without Python."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np

from bayesnorm.arguments import positive_integer
from bayesnorm.graph import apply, compiled_for
from bayesnorm.layers.noise import noise_mode
from bayesnorm.prediction.memory import ROWS, rows_that_fit
from bayesnorm.prediction.networks import Noise, check_any_batch
from bayesnorm.prediction.tasks import temperatures_of
from bayesnorm.serving.described import (
    check_noise,
    check_tensorflow,
    described,
    signature_of,
)
from bayesnorm.serving.readme import readme
from bayesnorm.storage import drafted
from bayesnorm.types import ArrayLike, Nest, StrPath, Task

if TYPE_CHECKING:
    from bayesnorm.prediction.weight_sets import ModelOrSets


# Of four signatures a request each, of which a server takes 1000.
_MOST_SIZES = 250


def export(
    model: ModelOrSets,
    path: StrPath,
    samples: int = 30,
    from_logits: Nest[bool | None] = None,
    task: Nest[Task] = "classification",
    chunk_size: int | None = None,
    temperature: Nest[float | None] = None,
    batch_sizes: Sequence[int] = (1, 8, 32),
    warmup_inputs: Nest[ArrayLike] | None = None,
) -> None:
    """Writes a SavedModel that answers with Monte Carlo uncertainty.

    Each example of a request is predicted by `samples` networks of its own. The
    part of the model before the first noise runs once. Signatures, all with the
    batch as the first axis of every input and output:

    - `seeded`: inputs and `seed`, int64 `[batch]`, to `probs` `[batch, ..., classes]`,
      `entropy` and `mutual_information` `[batch, ...]` (see `bayesnorm.predict`). The
      noise of an example is a function of its seed alone: the answer repeats, whatever
      else is in the batch, up to the rounding of kernels that depend on the batch size
      (about 1e-6); it is that of `predict(model, x, samples, seed=seed)`;
    - `mean`: `probs` and `entropy` of the network of mean weights;
    - `serving_default`: as `seeded` without the seed, with fresh noise on every call,
      also after a restart and under concurrent requests: an answer never repeats;
    - `samples`: `samples` `[batch, samples, ..., classes]`, fresh noise.

    An ensemble is one graph, which runs in turn with the weights of each member; all
    weigh the same. Its `mean` is `predict(ensemble, x, method="mean")`, with the
    `mutual_information` (or `variance`) between the members as well.

    With `task="regression"` the outputs are `mean` and `variance`; with
    `task="multilabel"` each label has its probability, entropy and mutual information.
    A model of several outputs has these entries for each, with its name before them:
    `age_mean`, `age_variance`.

    A single input is called `inputs`, several by the names of the model's Inputs.
    A README.md in the folder tells how to serve it and how to ask it, `batching.txt` is
    for a server that puts requests together (where it serves,
    `python -m bayesnorm.serving.tune_batching` measures it anew), and `assets.extra`
    has requests of every signature and batch size, with which a server warms up.
    Where there is no server: `bayesnorm.export_onnx`, `bayesnorm.export_litert`.

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
        batch_sizes: Integers, increasing: the batch sizes to warm up, and to which a
            server that batches pads.
        warmup_inputs: Inputs `[n, ...]`, of which the first makes the warm-up requests;
            None for zeros. A model that leaves the shape of an example open has no
            warm-up requests without.

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
    batch_sizes = _increasing(batch_sizes)
    model, sets, found = described(model, task, from_logits)
    temperatures, outputs = temperatures_of(found, temperature), found.each
    check_any_batch(model)
    check_noise(model, sets)
    signature = signature_of(model)
    samples = samples if Noise(model).size else 1
    path = pathlib.Path(os.path.abspath(path))
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise ValueError(
            f"There is something at {path}, which is not overwritten. Export to a new "
            "folder (the next version of the model), or remove that one first."
        )
    from bayesnorm.serving import batching, saved_model, warmup

    example = None if warmup_inputs is None else _example(signature, warmup_inputs)
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
        requests = warmup.write_requests(draft, model.name, batch_sizes, example)
        batching.write_parameters(draft, batch_sizes)
        page = readme(
            *(model, path, members, samples),
            *(signature, outputs, temperatures, requests),
        )
        (draft / "README.md").write_text(page)


def _increasing(batch_sizes):
    sizes = [positive_integer("batch_sizes", size) for size in batch_sizes]
    if not sizes or sizes != sorted(set(sizes)) or len(sizes) > _MOST_SIZES:
        raise ValueError(
            f"`batch_sizes` must be 1 to {_MOST_SIZES} integers, increasing. Received: "
            f"{batch_sizes!r}"
        )
    return sizes


def _example(signature, inputs):
    """Returns the first of some inputs by name, `[1, ...]`."""
    specs, found = keras.tree.flatten(signature), {}
    arrays = keras.tree.flatten(inputs)
    if len(arrays) != len(specs):
        raise ValueError(
            f"`warmup_inputs` must be the model's {len(specs)} inputs. Received: "
            f"{len(arrays)} arrays."
        )
    for spec, array in zip(specs, map(np.asarray, arrays), strict=True):
        sizes = zip(array.shape[1:], spec.shape[1:], strict=False)
        fits = array.ndim == len(spec.shape) and len(array) > 0
        if not fits or any(b not in (None, a) for a, b in sizes):
            raise ValueError(
                f"`warmup_inputs` must have the shape {spec.shape} for {spec.name!r}, "
                f"one example or more. Received: {array.shape}"
            )
        dtype = np.bytes_ if spec.dtype == "string" else spec.dtype
        found[spec.name] = array[:1].astype(dtype)
    return found


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
