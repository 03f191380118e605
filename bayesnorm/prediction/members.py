"""The members of an ensemble: models, or sets of the weights of one."""

import collections
import contextlib
import dataclasses
import weakref

import keras
from keras import ops

from bayesnorm import backend
from bayesnorm.graph import architecture_difference, compiled_for, state_of
from bayesnorm.prediction.sampling import SamplingModel
from bayesnorm.prediction.weight_sets import WeightSets


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """A network of an ensemble.

    Attributes:
        model: The model that computes it.
        weights: Tensors in the place of those of `model.weights`, None for these.
    """

    model: keras.Model
    weights: list | None = None

    def state(self):
        """Returns the values of the model's variables that are this member's."""
        return state_of(self.model, self.weights)

    def scope(self):
        """Returns a context in which the model has this member's weights."""
        if self.weights is None:
            return contextlib.nullcontext()
        pairs = zip(self.model.weights, self.weights, strict=True)
        return keras.StatelessScope(pairs, collect_losses=True)


def members_of(model):
    """Returns the `Member`s of what `predict` takes for a model.

    Args:
        model: A Keras model, `WeightSets`, or a list of these.

    Raises:
        TypeError: If it is something else.
        ValueError: If the list is empty.
    """
    given = list(model) if isinstance(model, list | tuple) else [model]
    if not given:
        raise ValueError("`model` is an empty list: give one model or more.")
    members = []
    for each in given:
        if isinstance(each, WeightSets):
            members += _of_sets(each)
        elif isinstance(each, keras.Model):
            each = each.model if isinstance(each, SamplingModel) else each
            members.append(Member(each))
        else:
            raise TypeError(
                "`model` must be a keras.Model, a bayesnorm.WeightSets or a list of "
                f"them. Received: {type(each).__name__}"
            )
    return members


def _of_sets(sets):
    stacks = sets.stacked()
    return [
        Member(sets.model, [ops.convert_to_tensor(stack[i]) for stack in stacks])
        for i in range(len(sets))
    ]


def _one_architecture(first, second):
    """Whether two built models are, found out once for each as it is now."""
    # What is compiled for a model goes when that has other layers or variables.
    key = architecture_difference, weakref.ref(compiled_for(second))
    return compiled_for(first).remember(
        key, lambda: architecture_difference(first, second) is None
    )


def with_shared_models(members):
    """Has one model compute all members of its architecture, which compiles once.

    Args:
        members: List of `Member`s of built models.

    Returns:
        The list of `Member`s in the same order: one that stands alone with its
        architecture keeps its own model and weights.
    """
    shared, place = [], {}
    for model in {id(member.model): member.model for member in members}.values():
        found = (x for x in shared if _one_architecture(x, model))
        place[id(model)] = next(found, model)
        if place[id(model)] is model:
            shared.append(model)
    models = [place[id(member.model)] for member in members]
    numbers = collections.Counter(map(id, models))
    new = []
    for member, model in zip(members, models, strict=True):
        weights = member.weights
        if weights is None and numbers[id(model)] > 1:
            weights = [backend.read(v) for v in member.model.weights]
        new.append(Member(model, weights))
    return new
