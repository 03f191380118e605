"""Who makes and who takes each tensor, within one model."""

import dataclasses
from typing import Any

from bayesnorm.graph.internals import functional, in_order, is_graph, nodes_of
from bayesnorm.graph.run import by_position


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a layer or of a `keras.ops` operation in a model.

    Attributes:
        operation: The layer or operation; no model that is gone into.
        inputs: The symbolic tensors that it takes, a list.
        outputs: Those that it gives, a list.
    """

    operation: Any
    inputs: list
    outputs: list


class Index:
    """The calls of one model, nested models gone into.

    A layer's own record of its calls (`layer.output`, its nodes) is of every model
    that ever used it: this one is of `model` alone.

    Args:
        model: A model. Without a graph, or where a nested one has none, nothing is
            known of what is inside.

    Attributes:
        calls: The `Call`s in the order in which they run, those of a nested model once,
            however often it is called.
    """

    def __init__(self, model):
        self.calls = []
        # By the identity of a tensor: the call that makes it, or what stands for it on
        # the other side of a nested model's border; and likewise those that take it.
        self._sources, self._takers = {}, {}
        self._outputs = set()
        self._add(model, set())

    def _add(self, model, done):
        if not is_graph(model) or id(model) in done:
            return
        done.add(id(model))
        self._outputs |= {id(x) for x in functional(model).outputs}
        for node in nodes_of(model):
            if node.is_input:
                continue
            if is_graph(node.operation):
                self._add(node.operation, done)
                graph = functional(node.operation)
                (nest, *_), _ = by_position(
                    node.operation, node.arguments.args, node.arguments.kwargs
                )
                given = in_order(node.operation, nest)
                for outer, inner in zip(given, graph.inputs, strict=False):
                    self._connect(outer, inner)
                for inner, outer in zip(graph.outputs, node.outputs, strict=True):
                    self._connect(inner, outer)
                continue
            call = Call(node.operation, node.inputs, node.outputs)
            self.calls.append(call)
            for x in node.outputs:
                self._sources.setdefault(id(x), []).append(call)
            for x in node.inputs:
                self._takers.setdefault(id(x), []).append(call)

    def _connect(self, source, taker):
        """Notes that a tensor outside of a nested model is one inside, or reverse."""
        self._sources.setdefault(id(taker), []).append(source)
        self._takers.setdefault(id(source), []).append(taker)

    def calls_of(self, operation):
        """Returns the `Call`s of a layer."""
        return [call for call in self.calls if call.operation is operation]

    def producers(self, tensor):
        """Returns the `Call`s that make a tensor: none of an Input of the model.

        Several where the tensor is an Input of a nested model that is called more than
        once.
        """
        return self._ends(self._sources, tensor)

    def consumers(self, tensor):
        """Returns the `Call`s that take a tensor, in and out of nested models too."""
        return self._ends(self._takers, tensor)

    def _ends(self, links, tensor):
        found = []
        for other in links.get(id(tensor), []):
            found += [other] if isinstance(other, Call) else self._ends(links, other)
        return list({id(call): call for call in found}.values())

    def is_input(self, tensor):
        """Whether a tensor is an Input of the model, in one call of what takes it."""
        sources = self._sources.get(id(tensor))
        if sources is None:
            return True
        return any(self.is_input(x) for x in sources if not isinstance(x, Call))

    def is_output(self, tensor):
        """Whether a tensor is an output of the model, or of one inside it."""
        return id(tensor) in self._outputs
