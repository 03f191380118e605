"""Samplers of the posterior beside those of posteriors and blackjax, on known targets.

```
pip install posteriors blackjax     # in this environment, or in one of its own:
python -m benchmarks.samplers --peer_python=/path/to/python --output=DIR
```

The targets are Gaussian, with noise in the gradient; all libraries take the same number
of steps with the same number of chains and seeds, each in a process of its own on the
CPU. A peer that the interpreter lacks is left out, and the report says so.

With Gaussian momenta, step h, friction D, mass m = 1 and T = 1 the libraries' arguments
are

| bayesnorm | posteriors | blackjax |
| --- | --- | --- |
| learning_rate h | lr | step_size |
| friction D | alpha | alpha |
| mass m | sigma^2 | 1 |
| thermostat xi | xi - alpha, one of all weights | xi - alpha, one of all weights |
| thermostat_mass mu | 1, of the mean over the weights | 1, of the mean |
| N times the loss | -log_posterior | -log density |
| - | beta = 0, the known noise | beta = 0 |

SGLD's step is `h / (m D)`, the limit of high friction, in all three. The peers' steps
are those of Euler; one thermostat for all weights of a chain finds the mean of their
noise. blackjax's SGHMC draws its momenta anew after 10 steps, which it takes on one
batch.
"""

import functools
import json
import math
import pathlib
import subprocess
import sys
import time

import keras
import numpy as np
from absl import app, flags
from keras import ops

from bayesnorm import backend, samplers
from benchmarks import sampler_peers, timing
from trainers import flags as trainer_flags
from trainers.report import tables

_CHAINS = flags.DEFINE_integer("chains", 1000, "Chains at once.", 1)
_STEPS = flags.DEFINE_integer("steps", 3000, "Steps of each.", 10)
_BURN_IN = flags.DEFINE_integer("burn_in", 1000, "How many of these do not count.", 1)
_SEEDS = flags.DEFINE_integer("seeds", 2, "Runs of each method.", 1)
_PEERS = flags.DEFINE_multi_enum(
    "peers", ["posteriors", "blackjax"], ["posteriors", "blackjax", "none"], "Peers."
)
_PEER_PYTHON = flags.DEFINE_string("peer_python", sys.executable, "Their interpreter.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the table.")

STEP, FRICTION, BATCHES = 0.05, 2.0, 77


def targets():
    """Returns the targets, name -> dict."""
    rng = np.random.default_rng(5)
    basis, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    return {
        "a weight": {"precision": [[1.0]], "centre": [0.0], "noise": [40.0]},
        "ten correlated weights": {
            "precision": (basis @ np.diag(np.linspace(0.5, 4, 10)) @ basis.T).tolist(),
            "centre": np.linspace(-1, 1, 10).tolist(),
            "noise": np.linspace(10, 60, 10).tolist(),
        },
    }


def own(task):
    """Returns rows of this package's samplers, as `sampler_peers` has of the others."""
    common = {"learning_rate": task["step"], "friction": task["friction"], "mass": 1.0}
    settled = common | {"thermostat_mass": 1.0}
    methods = {
        "ATMC": functools.partial(samplers.ATMC, speed_limit=math.inf, **settled),
        "SGNHT": functools.partial(samplers.SGNHT, **settled),
        "SGHMC": functools.partial(samplers.SGHMC, **common),
        "SGLD": functools.partial(samplers.SGLD, learning_rate=task["langevin_step"]),
    }
    return [
        {"method": name, "seed": seed, **_chain(task, make, seed)}
        for name, make in methods.items()
        for seed in task["seeds"]
    ]


def _chain(task, make, seed):
    precision, centre, scale = (
        ops.convert_to_tensor(np.asarray(x, "float32"))
        for x in (task["precision"], task["centre"], np.sqrt(task["noise"]))
    )
    shape = task["chains"], len(task["noise"])
    weights = keras.Variable(np.zeros(shape, "float32"))
    sampler = make(1, seed=seed, verbose=False)
    sampler.build([weights])

    def step(i, totals):
        values = ops.convert_to_tensor(weights)
        batch = backend.fold_in(backend.seed_from_int(BATCHES + seed), i)
        gradient = ops.matmul(values - centre, precision)
        gradient += scale * backend.stateless_normal(shape, batch)
        sampler.apply([gradient], [weights])
        after = ops.convert_to_tensor(weights)
        square = ops.matmul(ops.transpose(after), after)
        return [totals[0] + ops.sum(after, 0), totals[1] + square]

    run = backend.compiled_loop(step, [weights, *sampler.variables])
    zeros = [ops.zeros(shape[1:]), ops.zeros(shape[1:] * 2)]
    run(0, task["burn_in"], zeros)
    start = time.process_time()
    totals = run(task["burn_in"], task["steps"], zeros)
    total, square = (ops.convert_to_numpy(x) for x in totals)
    seconds = time.process_time() - start
    steps = task["steps"] - task["burn_in"]
    count = steps * task["chains"]
    return sampler_peers.summary(task, total, square, count, seconds, steps)


def peer(library, task):
    """Returns `(version, rows)` of a peer, None if it is not installed."""
    done = subprocess.run(
        [_PEER_PYTHON.value, "-m", sampler_peers.__name__, library],
        cwd=pathlib.Path(sampler_peers.__file__).parents[1],
        input=json.dumps(task),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == sampler_peers.ABSENT:
        return None
    done.check_returncode()
    found = json.loads(done.stdout)
    return found["version"], found["rows"]


def main(argv):
    """Runs all, prints the tables and writes them where asked."""
    del argv
    backend_name = f"Keras {keras.__version__} on {keras.backend.backend()}"
    libraries, absent, results = {"bayesnorm": backend_name}, [], []
    for name, target in targets().items():
        task = target | {
            "step": STEP,
            "friction": FRICTION,
            "langevin_step": STEP / FRICTION,
            "chains": _CHAINS.value,
            "steps": _STEPS.value,
            "burn_in": _BURN_IN.value,
            "seeds": list(range(_SEEDS.value)),
        }
        rows = {"bayesnorm": own(task)}
        for library in _PEERS.value:
            found = None if library == "none" else peer(library, task)
            if found:
                libraries[library], rows[library] = found
            elif library not in (*absent, "none"):
                absent.append(library)
        results += [
            {"target": name, "library": library, **row}
            for library, of_library in rows.items()
            for row in of_library
        ]
    settings = {
        "command": trainer_flags.command(),
        "hardware": timing.hardware(),
        "libraries": libraries,
        "absent": absent,
        "chains": _CHAINS.value,
        "steps": _STEPS.value,
        "burn_in": _BURN_IN.value,
        "seeds": _SEEDS.value,
    }
    page = _page(settings, results)
    print(page)
    if _OUTPUT.value:
        folder = pathlib.Path(_OUTPUT.value)
        folder.mkdir(parents=True, exist_ok=True)
        figures = json.dumps({**settings, "rows": results}, indent=1)
        (folder / "metrics.json").write_text(figures + "\n")
        (folder / "report.md").write_text(page)


def _page(settings, results):
    versions = ", ".join(f"{k} ({v})" for k, v in settings["libraries"].items())
    lines = [
        "# Samplers on targets of known moments",
        "",
        f"`{settings['command']}`",
        "",
        f"{versions}; {settings['hardware']}. {settings['chains']} chains of "
        f"{settings['steps']} steps, the first {settings['burn_in']} left out, "
        f"{settings['seeds']} seeds: the largest, of variances the mean and half "
        "the range. Errors of means are in deviations, the largest; those of "
        "variances relative, their mean over the weights; those of the covariance in "
        f"deviations, the largest. Step {STEP:g}, friction {FRICTION:g}.",
    ]
    lines += [f"\nNot installed: {', '.join(settings['absent'])}."] * bool(
        settings["absent"]
    )
    for target in dict.fromkeys(row["target"] for row in results):
        rows = []
        cases = [(r["library"], r["method"]) for r in results if r["target"] == target]
        for library, method in dict.fromkeys(cases):
            own = [
                row
                for row in results
                if (row["target"], row["library"], row["method"])
                == (target, library, method)
            ]
            ms = np.median([row["ms"] for row in own])
            rows.append(
                [
                    method,
                    library,
                    f"{max(row['mean'] for row in own):.3f}",
                    _percent([row["variance"] for row in own]),
                    f"{max(row['covariance'] for row in own):.3f}",
                    f"{ms:.2f}",
                ]
            )
        head = ["", "library", "mean", "variance", "covariance", "CPU ms of a step"]
        rows.sort(key=lambda row: ["ATMC", "SGNHT", "SGHMC", "SGLD"].index(row[0]))
        lines += ["", f"## {target.capitalize()}", "", tables.table(head, rows)]
    return "\n".join([*lines, ""])


def _percent(values):
    spread = (max(values) - min(values)) / 2
    return f"{100 * np.mean(values):+.1f} ± {100 * spread:.1f} %"


if __name__ == "__main__":
    app.run(main)
