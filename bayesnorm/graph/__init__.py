"""The graphs of Keras models: run, read and rewritten.

- `apply`: a model's outputs; `run`: the same, each call in the hands of the caller, as
  Keras's inference hands arguments down;
- `build`: a model that is not built yet; `graph_of`: what is run, or an error;
  `enters`: whether a nested model is gone into; `output_nest`: what comes out;
- `Index`: who makes and who takes a tensor, in one model;
- `rewrite`: a copy of a model with other layers in the place of some (`Finished` ones,
  where they have their weights); `copy_of`,
  `copy_weights` of single layers;
- `first_difference`: whether two models compute the same; `architecture_difference`:
  whether they would, with the same weights;
- `compiled_for`: the functions compiled for a model; `state_of`: the values that the
  variables of one have, perhaps with other weights.

`internals` is the only module of the package that names what is private to Keras.
"""

from bayesnorm.graph.architecture import architecture_difference
from bayesnorm.graph.compare import first_difference
from bayesnorm.graph.compiled import compiled_for, state_of
from bayesnorm.graph.index import Call, Index
from bayesnorm.graph.internals import (
    functional,
    in_order,
    is_graph,
    layers_of,
    standardize,
    unlocked,
)
from bayesnorm.graph.rewrite import Finished, copy_of, copy_weights, rewrite
from bayesnorm.graph.run import (
    apply,
    build,
    by_position,
    enters,
    graph_of,
    output_nest,
    run,
)

__all__ = [
    "Call",
    "Finished",
    "Index",
    "apply",
    "architecture_difference",
    "build",
    "by_position",
    "compiled_for",
    "copy_of",
    "copy_weights",
    "enters",
    "first_difference",
    "functional",
    "graph_of",
    "in_order",
    "is_graph",
    "layers_of",
    "output_nest",
    "rewrite",
    "run",
    "standardize",
    "state_of",
    "unlocked",
]
