"""The processes that train one network together."""

from collections.abc import Callable
from typing import NamedTuple

# As of a failure that another try may mend (sysexits.h, EX_TEMPFAIL).
EXIT_WORKER_LOST = 75
NO_ACCELERATOR = (
    "There is no accelerator: give the number of parts that the CPU is to stand for."
)


class WorkerLostError(RuntimeError):
    """Another process of those that train one network is gone."""

    def __init__(self, why):
        super().__init__(
            f"Another worker was lost ({why}). Begin the same command again on all of "
            "them: it goes on from the last checkpoint."
        )


class Workers(NamedTuple):
    """This process among those that train one network together.

    Attributes:
        index: Its number, from 0.
        count: Number of processes.
        replicas: Parts of a batch, over all processes.
        gather: Function of an integer to the list of those of all processes, which all
            of them call; none returns before all have called it.
    """

    index: int  # type: ignore[assignment]  # not that of a tuple
    count: int  # type: ignore[assignment]
    replicas: int
    gather: Callable
