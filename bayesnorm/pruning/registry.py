"""The rules that follow channels through a layer and thin it, one for each type."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is done with the layers of a type.

    Attributes:
        follow: Function `(trace, operation, *args, **kwargs) -> outputs`, with
            `Channels` in the place of each tensor of the call.
        thin: Function `(operation, removal) -> list of layers` that take its place, or
            None where a copy will do. Not asked where nothing about it changes.
    """

    follow: Callable
    thin: Callable


_RULES: dict[type, Rule] = {}
# What a layer computes with: a subclass that has another one is another layer.
_COMPUTES = ("call", "convolution_op", "kernel")


def copied(operation, removal):
    """What `thin` is for layers in which nothing has the size of the channels."""
    del operation, removal


def register(*types, thin=copied):
    """Decorator that registers a function as `Rule.follow` of types of layers.

    Args:
        *types: Layer types, or types of `keras.ops` operations. A subclass has the rule
            of its base unless it has a `call` of its own, or what that calls.
        thin: The `Rule.thin`.
    """

    def decorator(follow):
        for each in types:
            _RULES[each] = Rule(follow, thin)
        return follow

    return decorator


def rule_for(operation):
    """Returns the `Rule` of an operation, None if there is none."""
    own = type(operation)
    for base in own.__mro__:
        if base in _RULES:
            same = all(getattr(own, x, 0) is getattr(base, x, 0) for x in _COMPUTES)
            return _RULES[base] if same else None
    return None
