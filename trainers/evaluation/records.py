"""Records of what was measured, from which `metrics.json` and every table come."""

import dataclasses
import json
import math
import re

import numpy as np

from bayesnorm.storage import write_atomically

_AXES = (None, "layer", "coverage", "perturbation", "samples", "chain")


@dataclasses.dataclass(frozen=True)
class Record:
    """A figure, and what it is the figure of.

    Attributes:
        part: Where it was measured, such as `"test"`; None for the run as a whole.
        figure: Its name, such as `"nll"`.
        value: A number, or a text; None where it is not finite or not known.
        unit: `"nats"`, `"%"`, `"s"`, or `"1"` for a number without a unit.
        method: Key of the `Method` that predicted, or None.
        output: Name of the network's output where it has several, or None.
        axis: What `at` is: `"layer"`, a name; `"coverage"`, the share kept in per cent;
            `"perturbation"`, its size; `"samples"`, how many; `"chain"`, its number.
            None without `at`.
        at: Where on the axis, or None.
        stddev: Standard deviation over the runs of a method, None for one run.
    """

    part: str | None
    figure: str
    value: float | int | str | None
    unit: str
    method: str | None = None
    output: str | None = None
    axis: str | None = None
    at: str | float | None = None
    stddev: float | None = None

    def __post_init__(self):
        if self.axis not in _AXES or (self.axis is None) != (self.at is None):
            raise ValueError(
                f"A record has an `axis`, one of {_AXES[1:]}, and `at`, or neither. "
                f"Received: axis={self.axis!r}, at={self.at!r}"
            )
        for name in ("value", "stddev"):
            value = getattr(self, name)
            value = value.item() if isinstance(value, np.generic) else value
            lost = isinstance(value, float) and not math.isfinite(value)
            object.__setattr__(self, name, None if lost else value)

    @property
    def key(self):
        """Its name in `metrics.json`, such as `"test/nll_averaged"`."""
        at = self.at if isinstance(self.at, str | None) else f"{self.at:g}"
        name = f"{self.figure}_{at}" if self.axis == "coverage" else self.figure
        words = [
            self.part,
            self.output,
            at if self.axis == "perturbation" else None,
            name if self.method is None else f"{name}_{self.method}",
            at if self.axis in ("layer", "samples", "chain") else None,
        ]
        return "/".join(word for word in words if word is not None)


def to_json(content):
    """Returns contents of `Records`, in whatever lists and dicts, a line a record."""
    text = json.dumps(content, indent=1) + "\n"
    return re.sub(r"{[^][{}]*}", lambda flat: re.sub(r"\n *", " ", flat[0]), text)


class Records:
    """Records by their keys, in order.

    Args:
        records: The records.
        **about: What holds for all of them, as JSON has it: `dataset`, `hardware`,
            `versions`, `methods` (key -> short title) and `shown`, the key of the
            method that stands for the network.

    Raises:
        ValueError: If two records have the same key.
    """

    def __init__(self, records=(), **about):
        self.about = about
        self._by_key = {}
        self.add(records)

    def add(self, records):
        """Adds records; raises a ValueError if there is one of the same key."""
        for record in records:
            if record.key in self._by_key:
                raise ValueError(
                    f"There is a record {record.key!r} already: name this one "
                    f"otherwise. Received: {record}"
                )
            self._by_key[record.key] = record

    def __iter__(self):
        return iter(self._by_key.values())

    def __len__(self):
        return len(self._by_key)

    def find(self, part, figure, method=None, **fields):
        """Returns the one record of these fields, the others None; or None."""
        return self._by_key.get(Record(part, figure, None, "", method, **fields).key)

    def value(self, *args, **fields):
        """Returns the value of the record that `find` finds, None without one."""
        return getattr(self.find(*args, **fields), "value", None)

    def select(self, **fields):
        """Returns all records that have the values of `fields`, a list in order."""
        wanted = fields.items()
        return [r for r in self if all(getattr(r, k) == v for k, v in wanted)]

    def along(self, **fields):
        """Returns the values of these records, `at` -> value, as plots show them."""
        return {record.at: record.value for record in self.select(**fields)}

    @property
    def values(self):
        """Dict of the values by key."""
        return {key: record.value for key, record in self._by_key.items()}

    def content(self):
        """Returns what `metrics.json` holds: `about`, and `figures` by key."""
        figures = {}
        for key, record in self._by_key.items():
            fields = dataclasses.asdict(record).items()
            figures[key] = {k: v for k, v in fields if v is not None or k == "value"}
        return self.about | {"figures": figures}

    def write(self, path):
        """Writes the content as JSON, with null for what is not finite."""
        write_atomically(path, to_json(self.content()))

    @classmethod
    def read(cls, path):
        """Returns the records of a file that `write` wrote."""
        about = json.loads(path.read_text("utf-8"))
        figures = about.pop("figures").values()
        return cls((Record(**{"part": None, **fields}) for fields in figures), **about)
