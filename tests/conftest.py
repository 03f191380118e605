"""What all tests share: quiet backends, seeds, markers."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Two test processes on two cores: more threads than cores only wait.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()


def pytest_configure(config):
    """Registers the markers that name a backend."""
    config.addinivalue_line("markers", "tensorflow: needs the TensorFlow backend")


# Fixtures of a module that are a whole run: one process makes them, not each.
_RUNS = {"finished", "unbroken"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Skips the tests of the other backend, and says so; groups those of one run."""
    for item in items:
        if _RUNS & set(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        for backend in ("tensorflow", "jax"):
            if item.get_closest_marker(backend) and backend != BACKEND:
                reason = f"needs KERAS_BACKEND={backend}"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def seeds():
    """Every test starts from the same seeds and the float32 policy."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def rng():
    """NumPy's generator, the same in every test."""
    return np.random.default_rng(0)
