"""The peers' part of `benchmarks.samplers`, for an interpreter that has one of them.

```
PYTHON -m benchmarks.sampler_peers LIBRARY < task.json > results.json
```

It needs the library and NumPy alone. It ends with exit code 3 if the library is not
installed. How a task's numbers become those of a library: `benchmarks.samplers`.
"""

import importlib.metadata
import json
import sys
import time

import numpy as np

ABSENT = 3
# Of blackjax, whose SGHMC draws momenta anew after as many: its default.
INTEGRATION_STEPS = 10


def summary(task, total, square, count, seconds, steps):
    """Returns what a chain is compared by.

    Args:
        task: Dict, as `benchmarks.samplers` makes it.
        total: `[d]`, the sum of the weights over chains and steps.
        square: `[d, d]`, that of their outer products.
        count: Number of terms of these.
        seconds: What `steps` steps took.
        steps: Number of steps, of all chains at once.

    Returns:
        Dict: errors of the mean (in deviations), of the variances (relative, their mean
        over the weights), of the covariance (largest, in deviations); `ms` of CPU time
        of a step.
    """
    mean = np.asarray(total, "float64") / count
    covariance = np.asarray(square, "float64") / count - np.outer(mean, mean)
    truth = np.linalg.inv(task["precision"])
    scale = np.sqrt(np.diag(truth))
    error = (covariance - truth) / np.outer(scale, scale)
    return {
        "mean": float(np.abs((mean - task["centre"]) / scale).max()),
        "variance": float(np.diag(error).mean()),
        "covariance": float(np.abs(error).max()),
        "ms": seconds / steps * 1e3,
    }


def posteriors(task):
    """Yields `(method, seed, summary)` of posteriors."""
    import torch
    from posteriors import sgmcmc

    torch.set_num_threads(1)
    precision, centre, noise = (
        torch.tensor(task[k], dtype=torch.float32)
        for k in ("precision", "centre", "noise")
    )
    scale, shape = noise.sqrt(), (task["chains"], len(noise))
    common = {"alpha": task["friction"], "beta": 0.0, "sigma": 1.0}
    methods = {
        "SGNHT": (sgmcmc.sgnht.build, {"lr": task["step"], **common}),
        "SGHMC": (sgmcmc.sghmc.build, {"lr": task["step"], **common}),
        "SGLD": (sgmcmc.sgld.build, {"lr": task["langevin_step"], "beta": 0.0}),
    }

    def log_posterior(theta, gradient_noise):
        off = theta - centre
        return -(off @ precision @ off) / 2 - gradient_noise @ theta, torch.tensor(0.0)

    for name, (build, arguments) in methods.items():
        transform = build(log_posterior, **arguments)
        # A thermostat for each chain.
        start = torch.func.vmap(transform.init, randomness="different")
        update = torch.func.vmap(
            lambda state, batch, transform=transform: transform.update(state, batch)[0],
            randomness="different",
        )
        for seed in task["seeds"]:
            torch.manual_seed(seed)
            state = start(torch.zeros(shape))
            total, square, began = 0.0, 0.0, None
            for i in range(task["steps"]):
                if i == task["burn_in"]:
                    began = time.process_time()
                state = update(state, scale * torch.randn(shape))
                if i >= task["burn_in"]:
                    total += state.params.sum(0)
                    square += state.params.T @ state.params
            seconds = time.process_time() - began
            steps = task["steps"] - task["burn_in"]
            count = steps * task["chains"]
            yield name, seed, summary(task, total, square, count, seconds, steps)


def blackjax(task):
    """Yields `(method, seed, summary)` of blackjax."""
    import blackjax
    import jax
    import jax.numpy as jnp

    precision, centre, noise = (
        jnp.asarray(task[k], "float32") for k in ("precision", "centre", "noise")
    )
    shape = task["chains"], len(noise)

    def gradient(theta, gradient_noise):
        return -(precision @ (theta - centre)) - gradient_noise

    arguments = {"alpha": task["friction"], "beta": 0.0}
    methods = {
        "SGNHT": (blackjax.sgnht(gradient, **arguments), task["step"], 1),
        "SGHMC": (
            blackjax.sghmc(gradient, INTEGRATION_STEPS, **arguments),
            task["step"],
            INTEGRATION_STEPS,
        ),
        "SGLD": (blackjax.sgld(gradient), task["langevin_step"], 1),
    }
    for name, (sampler, step_size, steps_of_one) in methods.items():
        ours = task["steps"] - task["burn_in"]

        def one(carry, key, sampler=sampler, step_size=step_size):
            state, total, square = carry
            batch_key, *keys = jax.random.split(key, 1 + shape[0])
            batch = jnp.sqrt(noise) * jax.random.normal(batch_key, shape)
            state = jax.vmap(lambda k, s, b: sampler.step(k, s, b, step_size))(
                jnp.stack(keys), state, batch
            )
            theta = getattr(state, "position", state)
            return (state, total + theta.sum(0), square + theta.T @ theta), None

        run = jax.jit(lambda carry, keys, one=one: jax.lax.scan(one, carry, keys)[0])
        zeros = jnp.zeros(shape[1:]), jnp.zeros(shape[1:] * 2)
        for seed in task["seeds"]:
            start_key, burn_key, key = jax.random.split(jax.random.key(seed), 3)
            state = jax.vmap(sampler.init)(
                jnp.zeros(shape), jax.random.split(start_key, shape[0])
            )
            calls = ours // steps_of_one
            burn = jax.random.split(burn_key, task["burn_in"] // steps_of_one)
            state, *_ = run((state, *zeros), burn)
            keys = jax.random.split(key, calls)
            # Compiled for their number.
            run((state, *zeros), keys)
            began = time.process_time()
            _, total, square = jax.block_until_ready(run((state, *zeros), keys))
            seconds = time.process_time() - began
            count = calls * shape[0]
            yield name, seed, summary(task, total, square, count, seconds, ours)


def main(library):
    """Runs a task, and prints its results."""
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        sys.exit(ABSENT)
    task = json.load(sys.stdin)
    results = {"posteriors": posteriors, "blackjax": blackjax}[library](task)
    rows = [{"method": name, "seed": seed, **row} for name, seed, row in results]
    json.dump({"version": version, "rows": rows}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
