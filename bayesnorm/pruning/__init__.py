"""Removal of channels: which can go, a smaller network of the same outputs, a report.

- `prune`: all of it; `magnitude_masks`: what it takes from another criterion;
- `plain`: the network in plain layers, with the masks in its weights;
- `walk`: the graph, by the rules of `linear`, `channelwise`, `positions`, `merges` and
  `operations`, which say what becomes of channels (`channels`), and thin the layers;
- `removal`: the decision; `cost`, `report`: what came of it.
"""

from bayesnorm.pruning import channelwise, linear, merges, operations, positions
from bayesnorm.pruning.magnitude import magnitude_masks
from bayesnorm.pruning.prune import prune
from bayesnorm.pruning.report import LayerReport, PruningReport

__all__ = ["LayerReport", "PruningReport", "magnitude_masks", "prune"]

# Modules that register rules when they are imported.
_RULES = (channelwise, linear, merges, operations, positions)
