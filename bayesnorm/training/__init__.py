"""Training: one loop, what its examples come from, and the states that it keeps."""

from bayesnorm.training.checkpoints import Checkpoints
from bayesnorm.training.loop import Config, DivergenceError, Loop, fit
from bayesnorm.training.parts import of_splits
from bayesnorm.training.progress import Progress
from bayesnorm.training.simultaneous import Loops
from bayesnorm.training.sources import OnDevice, OnHost
from bayesnorm.training.stream import Stream

__all__ = [
    "Checkpoints",
    "Config",
    "DivergenceError",
    "Loop",
    "Loops",
    "OnDevice",
    "OnHost",
    "Progress",
    "Stream",
    "fit",
    "of_splits",
]
