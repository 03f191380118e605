"""`prune` on random networks: as the network in whose weights the same is 0."""

import keras
import numpy as np
import pytest

import bayesnorm
from bayesnorm.pruning import magnitude_masks
from tests.helpers import long
from tests.pruning import graphs


def check(seed):
    """Prunes a random network and compares; returns the shares kept and masked."""
    model, masks = graphs.make(seed)
    report = check_pruned(model, masks, seed)[1]
    keras.backend.clear_session()
    return report


def check_pruned(model, masks, seed):
    x = np.random.default_rng(seed).normal(size=(3, *model.inputs[0].shape[1:]))
    pruned, report = bayesnorm.prune(model, keep=masks)
    graphs.mask_by_hand(model, masks)
    for a, b in zip(
        keras.tree.flatten(model(x)), keras.tree.flatten(pruned(x)), strict=True
    ):
        a, b = (np.asarray(keras.ops.convert_to_numpy(v), "float64") for v in (a, b))
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
    return pruned, report


@pytest.mark.filterwarnings("ignore:Layers of model")
@pytest.mark.parametrize("start", range(0, 20, 5))
def test_as_masked(start):
    # Eager JAX compiles each operation for each shape.
    count = 5 if keras.backend.backend() == "tensorflow" else 1
    reports = [check(seed) for seed in range(start, start + count)]
    before, after = np.sum([r.parameters for r in reports], 0)
    assert after < 0.9 * before


@pytest.mark.filterwarnings("ignore:Layers of model")
@pytest.mark.parametrize("start", [0, long(8)])
def test_pruned_once_more(start):
    # What a first pruning made, gathers in front of layers too, is gone through.
    found = []
    for seed in range(start, start + (8 if start else 3)):
        model, masks = graphs.make(seed)
        pruned, _ = check_pruned(model, masks, seed)
        masks = magnitude_masks(pruned, 0.4)
        found.append(check_pruned(pruned, masks, seed)[1])
        keras.backend.clear_session()
    before, after = np.sum([r.parameters for r in found], 0)
    assert after < 0.9 * before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layers of model")
@pytest.mark.parametrize("start", range(20, 80, 20))
def test_as_masked_by_the_dozen(start):
    for seed in range(start, start + 20):
        check(seed)
