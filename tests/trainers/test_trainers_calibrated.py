"""The section on what validation examples mend."""

import dataclasses
import types

import numpy as np
import pytest

from bayesnorm import datasets
from trainers.report import calibrated as section


@dataclasses.dataclass
class Method:
    """A way to predict, as evaluations have them."""

    title: str
    runs: tuple
    arguments: dict


def evaluation(monkeypatch, rng, right):
    """Returns one of a method that is right for a share of the validation examples."""
    labels = np.arange(60) % 3
    shown = np.where(np.arange(60) < right * 60, labels, (labels + 1) % 3)
    probs = 0.01 + 0.97 * np.eye(3)[shown]
    found = types.SimpleNamespace(probs=probs.astype("float32"))
    monkeypatch.setattr(section, "predict", lambda *args, **kwargs: found)
    images = rng.random((60, 4, 4, 1), "float32")
    splits = datasets.from_arrays(*[(images, labels)] * 3, class_names=list("abc"))
    return types.SimpleNamespace(
        splits=splits,
        methods={"own": Method("own way", (None,), {})},
        predictions={"test": {"own": [found]}},
    )


@pytest.mark.parametrize("right", [1.0, 0.9])
def test_it_says_where_validation_has_no_temperature(monkeypatch, rng, right):
    found = section.calibrated(evaluation(monkeypatch, rng, right))
    (temperature,) = (r.value for r in found.records if r.figure == "temperature")
    assert ("Not of own way" in found.text) == (right == 1.0)
    assert (temperature < 0.1) == (right == 1.0)
    if right < 1.0:
        # The best confidence is the accuracy: 0.98 / 0.01 to the power 1 / T is 18.
        expected = np.log(98) / np.log(18)
        np.testing.assert_allclose(temperature, expected, rtol=1e-4)
