"""Load of a served model: requests per second, latency, failures, repeated answers.

```
python -m benchmarks.serving --minutes=30 --output=benchmarks/results/serving
```

Exports an All-CNN whose answers are of 30 networks, and serves it on this machine: by
TensorFlow's C library behind gRPC (`tests/serving/prediction_service.py`, with the
stubs of `tensorflow-serving-api`) and by Ray Serve (`python -m bayesnorm.serving`).
Clients are threads of this process; each sends one example, waits for the answer and
sends the next. A latency is what a client sees, with the making and reading of
messages. Fresh noise never repeats: two equal answers of a server, of whichever
clients, are counted as repeated.
"""

import json
import pathlib
import tempfile

import numpy as np
from absl import app, flags

from bayesnorm import models
from bayesnorm.serving.export import export
from benchmarks import servers, timing
from benchmarks.clients import Answers, load, table
from trainers.flags import command

_MINUTES = flags.DEFINE_float("minutes", 30.0, "Time of all loads together.", 0.01)
_CLIENTS = flags.DEFINE_multi_integer("clients", [1, 8], "Clients at once.", 1)
_WIDTH = flags.DEFINE_float("width", 0.25, "Width factor of the All-CNN.", 0.01)
_SAMPLES = flags.DEFINE_integer("samples", 30, "Networks of an answer.", 1)
_REPLICAS = flags.DEFINE_integer("replicas", 1, "Replicas of Ray Serve.", 1)
_BATCH_WAIT_TIMEOUT_MS = flags.DEFINE_float(
    "batch_wait_timeout_ms", 5.0, "How long a batch of Ray Serve waits.", 0.0
)
_THREADS = flags.DEFINE_integer("threads", 0, "TensorFlow's threads in Ray Serve.", 0)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the table.")


def loads(folder, inputs):
    """Yields a row for each server and number of clients."""
    each = _MINUTES.value * 60 / (2 * len(_CLIENTS.value))
    starts = (
        lambda: servers.CLibraryServer(folder),
        lambda: servers.RayServer(
            folder,
            f"--replicas={_REPLICAS.value}",
            f"--batch_wait_timeout_ms={_BATCH_WAIT_TIMEOUT_MS.value}",
            f"--threads={_THREADS.value}",
        ),
    )
    for start in starts:
        with start() as server:
            answers = Answers()
            for clients in _CLIENTS.value:
                yield load(server, clients, inputs, each, answers)


def main(argv):
    """Runs the loads."""
    del argv
    model = models.all_cnn(
        projection=False, width=_WIDTH.value, seed=0, initial_stddev=0.3
    )
    x = np.random.default_rng(0).normal(size=(1, *model.input_shape[1:]))
    rows = []
    with tempfile.TemporaryDirectory() as root:
        folder = pathlib.Path(root, "all_cnn")
        export(model, folder / "1", samples=_SAMPLES.value, from_logits=True)
        for row in loads(folder, {"inputs": x.astype("float32")}):
            rows.append(row)
            print(table([row]), *row["failures"], sep="\n", flush=True)
    title = (
        f"All-CNN, width {_WIDTH.value:g}, {_SAMPLES.value} networks an answer, one "
        f"example a request ({timing.hardware()})"
    )
    page = f"## {title}\n\n    {command()}\n\n{table(rows)}\n"
    print(page)
    if _OUTPUT.value:
        output = pathlib.Path(_OUTPUT.value)
        output.mkdir(parents=True, exist_ok=True)
        (output / "table.md").write_text(page, "utf-8")
        found = {"title": title, "rows": rows}
        (output / "table.json").write_text(json.dumps(found, indent=2), "utf-8")


if __name__ == "__main__":
    app.run(main)
