"""Types of public signatures; aliases alone, which nothing needs to run.

Keras and its backends have no types of their own that a checker reads: their tensors,
layers and models are `Any` to mypy. What this package takes and gives itself is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = [
    "ArrayLike",
    "F",
    "Initializer",
    "Inputs",
    "Labelled",
    "LearningRate",
    "MaybeNone",
    "Method",
    "Nest",
    "NoiseMode",
    "Norm",
    "Operation",
    "Regularizer",
    "Row",
    "Scale",
    "Schedule",
    "Shape",
    "StrPath",
    "Task",
    "Tensor",
]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# What `numpy.asarray` takes.
ArrayLike: TypeAlias = npt.ArrayLike
# A tensor of the active backend, a symbolic one, or what Keras makes one of.
Tensor: TypeAlias = Any
# None in one case that the caller knows, such as the probabilities of a regression:
# `X | MaybeNone` has the attributes of X, and asks for no test (as in typeshed).
MaybeNone: TypeAlias = Any
# A layer, or an operation of `keras.ops` in a graph.
Operation: TypeAlias = Any
# The batch first; None where a size is not known. Keras gives a list where it loads.
Shape: TypeAlias = Sequence[int | MaybeNone]
StrPath: TypeAlias = str | os.PathLike[str]

# Not of any sequence: a text is one of texts, and would pass for a nest of choices.
Nest: TypeAlias = T | list["Nest[T]"] | tuple["Nest[T]", ...] | Mapping[str, "Nest[T]"]
# An array, a nest of arrays, or a stream of batches of any length.
Inputs: TypeAlias = npt.NDArray[Any] | Mapping[str, Any] | Iterable[Any]
# Examples and their labels.
Labelled: TypeAlias = tuple[np.ndarray, np.ndarray]

Method: TypeAlias = Literal["sample", "minibatch", "mean", "moments"]
Task: TypeAlias = Literal["classification", "multilabel", "regression"]
Norm: TypeAlias = Literal["batch", "stochastic_batch", "weight", "analytic"] | None
Scale: TypeAlias = Literal["plain", "noisy", "stochastic", "pruning"]
NoiseMode: TypeAlias = Literal["auto", "mean", "sample"] | Callable[..., Any]

# As Keras takes them: by name, by configuration, or the object.
Initializer: TypeAlias = str | Mapping[str, Any] | Callable[..., Any]
Regularizer: TypeAlias = str | Mapping[str, Any] | Callable[..., Any] | None
# A number, or a schedule of Keras.
LearningRate: TypeAlias = float | Callable[[Any], Any]
Schedule: TypeAlias = (
    Literal["constant", "cosine", "exponential", "linear"] | Callable[[Any], Any]
)
# Figures of an epoch by name.
Row: TypeAlias = dict[str, Any]
