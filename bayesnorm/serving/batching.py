"""How a model server puts requests together: `batching.txt`."""

import os
import pathlib

from bayesnorm.storage import write_atomically

FILE = "batching.txt"
_TIMEOUT_US = 1000


def write_parameters(folder, sizes, timeout_us=None, measured=None):
    """Writes `batching.txt`, the `BatchingParameters` of TensorFlow Serving.

    Args:
        folder: Path of the SavedModel.
        sizes: The allowed batch sizes, increasing.
        timeout_us: Integer, microseconds; None for 1000.
        measured: Dict of seconds of a call by batch size, to note there, or None.
    """
    lines = [f"# {line}" for line in _notes(measured)]
    values = {
        "max_batch_size": sizes[-1],
        "batch_timeout_micros": _TIMEOUT_US if timeout_us is None else timeout_us,
        "max_enqueued_batches": 100,
        "num_batch_threads": os.cpu_count(),
    }
    lines += [f"{name} {{ value: {value} }}" for name, value in values.items()]
    lines += [f"allowed_batch_sizes: {size}" for size in sizes]
    write_atomically(pathlib.Path(folder) / FILE, "\n".join(lines) + "\n")


def _notes(measured):
    if measured is None:
        return (
            "Defaults, but for the cores of the machine that exported. On that which",
            "serves `python -m bayesnorm.serving.tune_batching FOLDER` measures them.",
        )
    return (
        f"Measured on {os.cpu_count()} cores, signature `seeded`:",
        *(
            f"batch {size}: {1e3 * seconds:.2f} ms, {size / seconds:.0f} examples/s"
            for size, seconds in measured.items()
        ),
    )
