"""Starts the plan, with JAX."""

import os
import time

START = time.monotonic()
# Before Keras is imported.
os.environ.setdefault("KERAS_BACKEND", "jax")

from benchmarks.accelerator import plan  # noqa: E402

if __name__ == "__main__":
    plan.run(START)
