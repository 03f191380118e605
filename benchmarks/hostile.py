"""Damaged files, wrong arrays and strange flags: how each of them ends.

```
python -m benchmarks.hostile --inputs=1200 --output=benchmarks/results/hostile
```

Each input is made from its number alone. It ends in one of these ways: a right answer
(of a file that was damaged where it does not count, the content that was written), a
refusal (an exception of the documented kinds, which this package raises, in words), the
exception of a library, passed on, or a fault: a wrong answer, any other exception, or
code in a file that ran. The command ends with exit code 1 if there is a fault.
"""

import collections
import pathlib
import platform
import sys
import tempfile

import keras
import numpy as np
from absl import app, flags

from bayesnorm.storage import write_atomically
from benchmarks.attack import ANSWER, FAULT, PASSED_ON, REFUSAL, attacked
from trainers.flags import command
from trainers.report.tables import table

_INPUTS = flags.DEFINE_integer("inputs", 1200, "Inputs in all.", 1)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the table.")


def main(argv):
    """Attacks, prints and writes."""
    del argv
    with tempfile.TemporaryDirectory() as folder:
        found = attacked(_INPUTS.value, pathlib.Path(folder))
    ways = (ANSWER, REFUSAL, PASSED_ON, FAULT)
    rows = []
    for title, ends in found.items():
        counts = collections.Counter(end.way for end in ends)
        rows.append([title, str(len(ends)), *(str(counts[way]) for way in ways)])
    total = np.sum([[int(cell) for cell in row[1:]] for row in rows], axis=0)
    rows.append(["all", *map(str, total)])
    backend = keras.backend.backend()
    text = f"""# Hostile inputs

`{command()}`; Keras {keras.__version__} on {backend}, {platform.machine()}.

{table(["", "inputs", *ways], rows)}

Refused: an exception of the documented kinds that this package raises, in words. Passed
on: the exception of a library.
"""
    print(text)
    if _OUTPUT.value:
        write_atomically(pathlib.Path(_OUTPUT.value) / f"{backend}.md", text)
    if total[-1]:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
