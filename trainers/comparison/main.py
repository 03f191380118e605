"""From a binary's flags to a comparison's report."""

import pathlib

from bayesnorm.storage import write_atomically
from trainers import flags as trainer_flags
from trainers.comparison import execution, report
from trainers.comparison.plan import read_plan


def main(binary, flags, columns):
    """Runs what `--runs` lists and reports; returns the content of `metrics.json`.

    Args:
        binary: Name of the module of the binary, such as `"trainers.all_cnn"`.
        flags: The flags of the comparison.
        columns: As for `report.write`.

    Raises:
        ValueError: If the folder is of a single run or of another comparison, or if a
            run failed; the others are in the report.
    """
    if len(set(flags.seeds)) < len(flags.seeds):
        raise ValueError(f"--seeds must differ. Received: {flags.seeds}")
    if flags["seed"].present:
        raise ValueError("--seed is of one run: with --runs give --seeds.")
    plan = read_plan(flags.runs, flags)
    name = pathlib.Path(flags.runs).stem
    program = binary.removeprefix("trainers.")
    folder = flags.workdir or f"runs/{program}-{flags.dataset}-{name}"
    folder = pathlib.Path(folder)
    _claim(folder, name)
    outcomes = execution.execute(binary, flags, plan, folder)
    command = trainer_flags.command(flags)
    shared = execution.is_shared(flags, plan)
    results = report.write(
        folder, plan, outcomes, columns, flags.seeds, command, shared
    )
    print(f"wrote {folder / 'report.md'}")
    failed = [o for of_seeds in outcomes.values() for o in of_seeds if o.failure]
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(outcomes) * len(flags.seeds)} runs failed; the "
            "report names them, and the same command tries them again."
        )
    return results


def _claim(folder, name):
    """Makes the folder that of the comparison `name`, or checks that it is."""
    if (folder / "flags.txt").exists():
        raise ValueError(
            f"--workdir={folder} is the folder of a single run (there is a flags.txt), "
            "whose report that of --runs would replace: give another --workdir."
        )
    note = folder / "runs.txt"
    there = note.read_text("utf-8").strip() if note.exists() else name
    if there != name:
        raise ValueError(
            f"--workdir={folder} is of --runs={there}, not of {name!r}: give another "
            f"--workdir, or remove {note} if the file was renamed."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(note, f"{name}\n")
