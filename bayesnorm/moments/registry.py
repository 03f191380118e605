"""The rules that take moments through a layer, one for each layer type."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras

from bayesnorm.graph.internals import AutocastScope
from bayesnorm.types import F, Operation

if TYPE_CHECKING:
    from bayesnorm.moments.moments import Moments


@dataclasses.dataclass(frozen=True)
class Rule:
    """How moments pass through the layers of a type.

    Calling it as `rule(layer, moments, ...)` gives the moments of the output.

    Attributes:
        function: The rule itself.
        needs_inputs: Whether the output's moments depend on the input's. A layer
            that standardizes its output does not need them, and a walk up the
            graph ends there.
        accepts_unknown: Whether it takes inputs whose moments are not known.
    """

    function: Callable
    needs_inputs: bool = True
    accepts_unknown: bool = False

    def __call__(self, layer: Operation, *args: Any, **kwargs: Any) -> Any:
        """Applies the rule; names the layer where moments are missing or wrong."""
        if not self.accepts_unknown:
            for moments in keras.tree.flatten((args, kwargs)):
                if not getattr(moments, "known", True):
                    raise ValueError(
                        f"Layer {layer.name!r} ({type(layer).__name__}) is given "
                        "values of unknown mean and variance: a Rescaling or "
                        "un-standardized layer before it changed the model's input, "
                        "whose moments nobody declared. Put an adapted "
                        "keras.layers.Normalization behind the rescaling."
                    )
        # Rules read the stored weights, also when a layer in half precision asks.
        with AutocastScope(None):
            return self.function(layer, *args, **kwargs)


_RULES: dict[type, Rule] = {}


def register(
    layer_type: type, *, needs_inputs: bool = True, accepts_unknown: bool = False
) -> Callable[[F], F]:
    """Decorator that registers the rule of a layer type and its subclasses.

    The rule is called as `rule(layer, moments, ...)` with `Moments` in the place of
    each tensor of the layer's call and returns the `Moments` of the output:

    ```python
    @bayesnorm.moments.register(Negate)
    def negate(layer, moments):
        return moments.replace(mean=-moments.mean)
    ```

    For a layer that works element by element, `register_elementwise` is shorter.

    Args:
        layer_type: Subclass of `keras.layers.Layer`, or type of a `keras.ops`
            operation.
        needs_inputs: Whether the output's moments depend on the input's; if not,
            a walk up the graph ends at the layer, and its rule may be given
            stationary `Moments` that hold nothing but their shape.
        accepts_unknown: Whether the rule takes `Moments` that are not `known`, with
            `mean` and `variance` None.

    Returns:
        The decorator, which returns the function unchanged.

    Raises:
        TypeError: If `layer_type` is not a class.
    """
    if not isinstance(layer_type, type):
        raise TypeError(
            "`register` takes a layer class: use @register(MyLayer). Received: "
            f"{layer_type!r}"
        )

    def decorator(function):
        unknown = accepts_unknown or not needs_inputs
        _RULES[layer_type] = Rule(function, needs_inputs, unknown)
        return function

    return decorator


def register_elementwise(layer_type: type) -> Callable[[F], F]:
    """Decorator for the rule of a layer that works element by element.

    ```python
    @bayesnorm.moments.register_elementwise(Square)
    def square(mean, variance):
        return mean**2 + variance, 2 * variance**2 + 4 * mean**2 * variance
    ```

    Args:
        layer_type: Subclass of `keras.layers.Layer`.

    Returns:
        The decorator, which returns the function `(mean, variance) -> (mean,
        variance)` unchanged.
    """

    def decorator(function):
        @register(layer_type)
        def rule(layer, moments):
            mean, variance = function(moments.mean, moments.variance)
            return moments.replace(mean=mean, variance=variance)

        return function

    return decorator


# Layer types without a rule, and why.
_REFUSED: dict[type, str] = {}


def refuse(layer_type: type, reason: str) -> None:
    """Notes why a layer type has no rule, for the error that names the layer.

    Args:
        layer_type: As in `register`, which overrides it.
        reason: A sentence.
    """
    _REFUSED[layer_type] = reason


def refuse_stationary(layer: Operation, moments: Moments) -> None:
    """Raises a ValueError for moments at data-set level."""
    if moments.stationary:
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) mixes elements in a way "
            "that one mean and variance per channel does not describe. Its moments "
            "are known per example only: give a batch of inputs as the mean."
        )


def rule_for(layer: Operation) -> Rule:
    """Returns the rule of a layer, by its type or the nearest base type.

    Args:
        layer: A layer or `keras.ops` operation.

    Returns:
        `Rule`, to be called as `rule(layer, moments)`.

    Raises:
        ValueError: If there is none.
    """
    reason = ""
    for base in type(layer).__mro__:
        if base in _RULES:
            return _RULES[base]
        if base in _REFUSED:
            reason = _REFUSED[base] + " "
            break
    name = type(layer).__name__
    raise ValueError(
        f"No rule takes means and variances through layer {layer.name!r} of type "
        f"{name}. {reason}Register one with @bayesnorm.moments.register({name}), a "
        "function (layer, moments) -> moments."
    )
