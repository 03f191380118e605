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


# Files whose tests look at one long run: one process does it, not each.
_ONE_RUN = (
    "test_accelerator_plan.py",
    "test_export_ensembles.py",
    "test_prediction_service.py",
    "test_ray_serve.py",
    "test_trainers_all_cnn.py",
    "test_trainers_atmc.py",
    "test_trainers_cell_fcn.py",
    "test_trainers_sbn.py",
    "test_trainers_sbp.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Deals out tests one by one, but those of some files together, and first."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if file.endswith(_ONE_RUN) else nodeid

    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    """Skips the tests of the other backend, and says so."""
    for item in items:
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
