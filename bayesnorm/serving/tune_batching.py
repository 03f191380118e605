"""Measures how a model server is to put requests together.

```
python -m bayesnorm.serving.tune_batching served/1
```

times the signature `seeded` of an exported SavedModel at growing batch sizes, on the
machine that is to serve it, and writes `batching.txt` and the warm-up requests anew:

- `max_batch_size`: the last size at which examples a second still grew by 5 %;
- `allowed_batch_sizes`: the powers of 2 up to it, to which a server pads;
- `batch_timeout_micros`: what a call of one example takes, but 10 ms at most: who comes
  alone waits no longer for company than for the answer;
- `num_batch_threads`: the cores.
"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping, Sequence

from absl import app, flags

from bayesnorm.serving import batching
from bayesnorm.types import StrPath

_MOST = flags.DEFINE_integer("most", 64, "Largest batch size to try.", 1)

_MOST_TIMEOUT_US = 10_000
_GAIN = 1.05
_SECONDS = 0.3  # Of calls of one size.


def measure(folder: StrPath, most: int = 64) -> dict[int, float]:
    """Times the signature `seeded` at the batch sizes 1, 2, 4 ... while they pay.

    Args:
        folder: Path of the SavedModel.
        most: The largest size.

    Returns:
        Dict of seconds of a call by batch size: the best of several. The last size is
        the first that did not pay, where there was one.

    Raises:
        ValueError: If it has no such signature, or nothing says the shape of an
            example.
    """
    import tensorflow as tf

    from bayesnorm.serving import warmup

    signature = warmup.signatures_of(folder).get("seeded")
    if signature is None:
        raise ValueError(f"{folder} has no signature 'seeded': bayesnorm.export it.")
    # The loaded object holds the weights.
    loaded = tf.saved_model.load(str(folder))
    found, size = {}, 1
    while size <= most:
        request = warmup.request_of(folder, signature, size)
        if request is None:
            raise ValueError(
                f"The model at {folder} leaves the shape of an example open. Export it "
                "with warmup_inputs=, an example as it will come."
            )
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.items()}
        found[size] = _seconds(lambda: loaded.signatures["seeded"](**inputs))  # noqa: B023
        if not _pays(found, size):
            break
        size *= 2
    return found


def _seconds(call):
    call()  # Compiles.
    best, start = float("inf"), time.perf_counter()
    while (begin := time.perf_counter()) < start + _SECONDS:
        call()
        best = min(best, time.perf_counter() - begin)
    return best


def _pays(seconds, size):
    smaller = seconds.get(size // 2)
    return smaller is None or 2 * smaller > _GAIN * seconds[size]


def settle(seconds: Mapping[int, float]) -> tuple[list[int], int]:
    """Returns `(sizes, timeout_us)` of what `measure` returned."""
    sizes = [size for size in seconds if _pays(seconds, size)]
    return sizes, min(round(1e6 * seconds[1]), _MOST_TIMEOUT_US)


def main(argv: Sequence[str]) -> None:
    """Measures a SavedModel, prints, and writes beside it."""
    if len(argv) != 2:
        raise app.UsageError("Expected one argument, the folder of a SavedModel.")
    from bayesnorm.serving import warmup

    folder = pathlib.Path(argv[1])
    seconds = measure(folder, _MOST.value)
    sizes, timeout_us = settle(seconds)
    batching.write_parameters(folder, sizes, timeout_us, seconds)
    warmup.write_requests(folder, folder.parent.name, sizes)
    print((folder / batching.FILE).read_text())


if __name__ == "__main__":
    app.run(main)
