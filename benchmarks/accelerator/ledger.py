"""What of the plan is done: a JSON file."""

import json
import pathlib

from bayesnorm.storage import write_atomically
from trainers.workdir import differences

DONE, BEGUN, FAILED = "done", "begun", "failed"


class Ledger:
    """The pieces that were begun, and what came of them.

    The file has `flags`, what the plan was begun with, `chosen`, what was chosen once
    and stays, and `pieces`: name -> `state`, `seconds` over all calls and `result`.

    Args:
        path: Path of the JSON file; it is written with the first piece.
        flags: Dict of the flags that figures depend on, as text by name.

    Raises:
        ValueError: If it is of a plan with other flags.
    """

    def __init__(self, path, flags):
        self._path = pathlib.Path(path)
        self._content = {"flags": flags, "chosen": {}, "pieces": {}}
        if not self._path.is_file():
            return
        self._content = json.loads(self._path.read_text("utf-8"))
        differing = differences(self._content["flags"], flags)
        if differing:
            raise ValueError(
                f"{self._path} is of a plan with other flags:\n  {differing}\nGive the "
                "same flags to go on there, or another --out."
            )

    def _write(self):
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(self._content, indent=1) + "\n")

    def state(self, name):
        """Returns the state of a piece, None if it was not begun."""
        return self._content["pieces"].get(name, {}).get("state")

    def result(self, name):
        """Returns the result of a piece, empty if there is none yet."""
        return self._content["pieces"].get(name, {}).get("result", {})

    def seconds(self, name):
        """Returns the seconds that a piece took so far."""
        return self._content["pieces"].get(name, {}).get("seconds", 0.0)

    def total_seconds(self, prefix=""):
        """Returns the seconds of all pieces whose name begins with `prefix`."""
        pieces = self._content["pieces"]
        return sum(self.seconds(name) for name in pieces if name.startswith(prefix))

    def results(self, prefix):
        """Returns the results of the pieces done, by the name behind `prefix`."""
        return {
            name.removeprefix(prefix): piece["result"]
            for name, piece in self._content["pieces"].items()
            if name.startswith(prefix) and piece["state"] == DONE
        }

    def record(self, name, state, seconds=0.0, result=None):
        """Records the state of a piece, and adds to its seconds."""
        piece = self._content["pieces"].setdefault(
            name, {"state": state, "seconds": 0.0, "result": {}}
        )
        piece["state"] = state
        piece["seconds"] = round(piece["seconds"] + seconds, 3)
        if result is not None:
            piece["result"] = result
        self._write()

    def choose(self, name, value):
        """Returns what was chosen under a name; the first value given is chosen."""
        chosen = self._content["chosen"]
        if name not in chosen:
            chosen[name] = value
            self._write()
        return chosen[name]

    def chosen(self, name, default=None):
        """Returns what was chosen under a name, or the default."""
        return self._content["chosen"].get(name, default)
