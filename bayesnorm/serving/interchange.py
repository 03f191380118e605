"""Models for other runtimes: ONNX (ONNX Runtime, OpenVINO) and LiteRT."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Literal

from bayesnorm.arguments import check_choice
from bayesnorm.prediction.networks import Noise, check_any_batch
from bayesnorm.prediction.tasks import temperatures_of
from bayesnorm.serving.described import (
    check_noise,
    check_tensorflow,
    described,
    signature_of,
)
from bayesnorm.storage import write_atomically
from bayesnorm.types import Nest, StrPath, Task

if TYPE_CHECKING:
    from bayesnorm.prediction.weight_sets import ModelOrSets


_METHODS = ("mean", "moments", "sample")


def export_onnx(
    model: ModelOrSets,
    path: StrPath,
    method: Literal["mean", "moments", "sample"] = "mean",
    from_logits: Nest[bool | None] = None,
    task: Nest[Task] = "classification",
    temperature: Nest[float | None] = None,
) -> None:
    """Writes an ONNX model, which ONNX Runtime and OpenVINO run.

    It is one graph with nothing random in it, and answers as `predict` does with the
    same method:

    - `"mean"`: `probs` `[batch, ..., classes]` and `entropy` `[batch, ...]` of the
      network of mean weights.
    - `"moments"`: `mutual_information` `[batch, ...]`, too, in one pass that propagates
      means and variances.
    - `"sample"`: these of the average over networks, whose draws are one more input,
      `noise`, float32 `[networks, size]`. `bayesnorm.draw_noise(model, samples, seed)`
      gives those of `predict(model, x, samples, seed=seed)`; a runtime that has its own
      generator gives any standard normals. All networks and examples of a call are in
      memory at once.

    With `task="regression"` these are `mean` and `variance`, which `"mean"` does not
    have; names of inputs and of entries are those of `bayesnorm.export`, every axis of
    examples is open, and so is that of networks.

    An ensemble is in the file as often as it has members. Its `noise` is
    `[members * networks, size]`, member by member, and its `"mean"` has the
    `mutual_information` (or `variance`) between the members as well.

    OpenVINO computes in half precision where the processor is faster with it, and is
    then off by 1e-3: compile with `{"INFERENCE_PRECISION_HINT": "f32"}`.

    Args:
        model: A built model, or an ensemble: `bayesnorm.WeightSets`, or a list of
            models of one architecture.
        path: The file to write, `model.onnx`. It appears complete, or not at all, and
            takes the place of what was there.
        method: `"mean"`, `"moments"` or `"sample"`.
        from_logits: As for `bayesnorm.predict`.
        task: As for `bayesnorm.predict`.
        temperature: As for `bayesnorm.predict`.

    Raises:
        TypeError: If `model` is something else.
        ValueError: If an argument is not as above, ONNX has no operation for something
            in the model (the error names the layer), or the backend is not TensorFlow.
        ImportError: If tf2onnx is not installed.
    """
    graph = _graph("An ONNX model", model, path, method, from_logits, task, temperature)
    try:
        from bayesnorm.serving import to_onnx
    except ImportError as error:
        raise ImportError(
            f"The export to ONNX needs tf2onnx ({error}). Install it: pip install "
            "'bayesnorm[onnx]'."
        ) from error
    write_atomically(path, to_onnx.convert(graph))


def export_litert(
    model: ModelOrSets,
    path: StrPath,
    method: Literal["mean", "moments", "sample"] = "mean",
    from_logits: Nest[bool | None] = None,
    task: Nest[Task] = "classification",
    temperature: Nest[float | None] = None,
) -> None:
    """Writes a LiteRT (TensorFlow Lite) model of one signature, `serving_default`.

    Its inputs, its entries and what they are, are those of `bayesnorm.export_onnx`. It
    needs the operations of LiteRT itself alone, none of TensorFlow.

    Args:
        model: As of `bayesnorm.export_onnx`.
        path: The file to write, `model.tflite`, likewise.
        method: As of `bayesnorm.export_onnx`.
        from_logits: As for `bayesnorm.predict`.
        task: As for `bayesnorm.predict`.
        temperature: As for `bayesnorm.predict`.

    Raises:
        TypeError: As of `bayesnorm.export_onnx`.
        ValueError: As of `bayesnorm.export_onnx`, for LiteRT.
    """
    graph = _graph(
        "A LiteRT model", model, path, method, from_logits, task, temperature
    )
    from bayesnorm.serving import to_litert

    write_atomically(path, to_litert.convert(graph))


def _graph(what, model, path, method, from_logits, task, temperature):
    """Returns the `OneGraph`, all arguments checked."""
    check_tensorflow(what)
    check_choice("method", method, _METHODS)
    model, sets, outputs = described(model, task, from_logits)
    temperatures = temperatures_of(outputs, temperature)
    check_any_batch(model)
    if method != "mean":
        check_noise(model, sets)
    if method == "sample" and not Noise(model).size:
        raise ValueError(
            f"Model {model.name!r} has no layer that draws noise: there are no "
            "networks to sample. Pass method='mean'."
        )
    if pathlib.Path(path).is_dir():
        raise ValueError(f"{path} is a folder. Expected the path of a file.")
    from bayesnorm.serving.one_graph import OneGraph
    from bayesnorm.serving.saved_model import Members

    members = Members(model, None if sets is None else sets.stacked())
    return OneGraph(members, signature_of(model), method, outputs.each, temperatures)
