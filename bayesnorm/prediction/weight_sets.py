"""A posterior as one model and many sets of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, TypeAlias, overload

import keras
import numpy as np
from keras import ops

from bayesnorm.arguments import check_model
from bayesnorm.graph import architecture_difference
from bayesnorm.prediction.sampling import SamplingModel
from bayesnorm.storage import ArchiveError, read_archive, write_archive
from bayesnorm.types import ArrayLike, StrPath

_KIND = "weight_sets"


class WeightSets:
    """One model and sets of its weights: an ensemble, or samples of a posterior.

    `predict` and `export` take it where they take a model: each set is a member, all of
    the same weight, and one compiled function serves them all. The model's own weights
    play no part in that, and keep their values.

    A set is what `model.get_weights()` returns: trainable weights, moving averages,
    statistics of a calibration. The states of random generators are not in it: the
    noise of a member in `predict` is a function of the seed, the number of the member,
    that of the sample and the place of the layer. So a set draws other noise when it
    stands at another place.

    Example:
    ```python
    sets = [model.get_weights()]
    for _ in range(9):
        model.fit(images, labels)  # a chain that samples weights, say
        sets.append(model.get_weights())
    posterior = bayesnorm.WeightSets(model, sets)
    prediction = bayesnorm.predict(posterior, new_images, samples=3)
    posterior.save("posterior.npz")
    ```

    Args:
        model: A built model.
        sets: The sets, one or more: lists of arrays as of `model.get_weights()`. They
            are copied.

    Attributes:
        model: The model.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is not built, there is no set, or the arrays of one have not
            the number and shapes of the model's weights.
    """

    def __init__(self, model: keras.Model, sets: Iterable[Sequence[ArrayLike]]) -> None:
        model = built_model(model)
        variables, sets = model.weights, list(sets)
        if not sets:
            raise ValueError("`sets` is empty: give one set of weights or more.")
        for i, arrays in enumerate(sets):
            if len(arrays) != len(variables):
                raise ValueError(
                    f"Set {i} has {len(arrays)} arrays. Expected the "
                    f"{len(variables)} weights of model {model.name!r}, as of its "
                    "get_weights()."
                )
            for k, (array, variable) in enumerate(zip(arrays, variables, strict=True)):
                if tuple(np.shape(array)) != tuple(variable.shape):
                    raise ValueError(
                        f"Array {k} of set {i} has shape {tuple(np.shape(array))}. "
                        f"Expected {tuple(variable.shape)}, that of "
                        f"{variable.path!r} of model {model.name!r}."
                    )
        stacks = [
            np.stack([_array(arrays[k], variable.dtype) for arrays in sets])
            for k, variable in enumerate(variables)
        ]
        self._set(model, len(sets), stacks)

    def _set(self, model, number, stacks):
        self.model, self._number = model, number
        for stack in stacks:
            stack.flags.writeable = False
        self._stacks = tuple(stacks)

    @classmethod
    def of(cls, models: Iterable[keras.Model]) -> Self:
        """Takes the weights of models of one architecture.

        Args:
            models: List of built models. The first becomes `model`, the others are not
                needed any more.

        Raises:
            TypeError: If one is not a Keras model.
            ValueError: If there is none, one is not built, or they differ in more than
                weights, names and seeds (or in something that cannot be compared).
        """
        models = [built_model(model) for model in models]
        if not models:
            raise ValueError("`models` is empty: give one model or more.")
        for model in models[1:]:
            difference = architecture_difference(models[0], model)
            if difference is not None:
                raise ValueError(
                    f"Models {models[0].name!r} and {model.name!r} are not of one "
                    f"architecture: {difference}. If the first computes what the other "
                    "does once it has its weights, say so by WeightSets(model, "
                    "[m.get_weights() for m in models])."
                )
        return cls(models[0], [model.get_weights() for model in models])

    def __len__(self) -> int:
        return self._number

    @overload
    def __getitem__(self, index: int) -> list[np.ndarray]: ...
    @overload
    def __getitem__(self, index: slice) -> WeightSets: ...
    def __getitem__(self, index: Any) -> Any:
        """Returns a set, a list of read-only arrays; of a slice `WeightSets`."""
        if isinstance(index, slice):
            return WeightSets(self.model, list(self)[index])
        index = range(self._number)[index]
        return [stack[index] for stack in self._stacks]

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return (self[i] for i in range(self._number))

    def assign(self, index: int) -> keras.Model:
        """Gives the model the weights of a set.

        Args:
            index: The number of the set.

        Returns:
            The model.
        """
        self._check_model()
        self.model.set_weights(self[index])
        return self.model

    def stacked(self) -> list[np.ndarray]:
        """Returns all sets: for each of `model.weights` an array `[sets, ...]`."""
        self._check_model()
        return list(self._stacks)

    def _check_model(self):
        shapes = [tuple(v.shape) for v in self.model.weights]
        if shapes != [stack.shape[1:] for stack in self._stacks]:
            raise ValueError(
                f"Model {self.model.name!r} has other weights than when the sets were "
                "made. Make WeightSets anew when layers are added or taken away."
            )

    def save(self, path: StrPath) -> None:
        """Writes the sets (without the architecture of the model) to a file.

        Args:
            path: Path of the file, which `numpy.load` reads too. It appears whole, or
                not at all, and each array has a checksum.
        """
        header = {
            "kind": _KIND,
            "model": self.model.name,
            "sets": self._number,
            "weights": [
                {"path": v.path, "shape": list(v.shape), "dtype": stack.dtype.name}
                for v, stack in zip(self.model.weights, self.stacked(), strict=True)
            ],
        }
        arrays = {_name(k): stack for k, stack in enumerate(self._stacks)}
        write_archive(path, arrays, header)

    @classmethod
    def load(cls, path: StrPath, model: keras.Model) -> Self:
        """Reads what `save` wrote.

        Args:
            path: Path of the file.
            model: A built model of the architecture that the sets were made of. The
                names of its layers do not count, those of their weights do.

        Raises:
            ArchiveError: If the file is damaged, or holds something else.
            ValueError: If its weights are not of the number, names and shapes of the
                model's.
            FileNotFoundError: If there is none.
        """
        model = built_model(model)
        arrays, header = read_archive(path)
        if not isinstance(header, dict) or header.get("kind") != _KIND:
            raise ArchiveError(f"{path} holds no weight sets.")
        stored, variables = header["weights"], model.weights
        where = f"{path} holds weights of model {header['model']!r}"
        if len(stored) != len(variables):
            raise ValueError(
                f"{where}, {len(stored)} arrays a set. Expected the {len(variables)} "
                f"weights of model {model.name!r}."
            )
        stacks = []
        for k, (entry, variable) in enumerate(zip(stored, variables, strict=True)):
            expected = variable.path, list(variable.shape)
            found = entry["path"], entry["shape"]
            if (_bare(expected[0]), expected[1]) != (_bare(found[0]), found[1]):
                raise ValueError(
                    f"{where} that do not fit model {model.name!r}: array {k} is "
                    f"{found[0]!r} of shape {tuple(found[1])}. Expected "
                    f"{expected[0]!r} of shape {tuple(expected[1])}."
                )
            # NumPy's format does not know the types of ml_dtypes: it says raw bytes.
            stack = arrays[_name(k)].view(np.dtype(entry["dtype"]))
            stacks.append(_array(stack, variable.dtype))
        found = cls.__new__(cls)
        found._set(model, header["sets"], stacks)
        return found


# What `predict` and `export` take: a model, or an ensemble.
ModelOrSets: TypeAlias = keras.Model | WeightSets | Sequence[keras.Model | WeightSets]


def built_model(model: Any) -> keras.Model:
    """Returns a model, or the one that a `sampling_model` is of, if it is built.

    Raises:
        TypeError: If it is not a Keras model.
        ValueError: If it is not built.
    """
    check_model(model)
    model = model.model if isinstance(model, SamplingModel) else model
    if not model.built:
        raise ValueError(
            f"Model {model.name!r} is not built: call it on a batch of data first."
        )
    return model


def _array(value, dtype):
    if ops.is_tensor(value) or isinstance(value, keras.Variable):
        value = ops.convert_to_numpy(value)
    return np.asarray(value).astype(dtype)


def _name(k):
    return f"weight_{k}"


def _bare(path):
    """The name of a weight, without its layer's and the number that Keras may add."""
    return re.sub(r"_\d+$", "", path.rpartition("/")[2])
