"""What is served to an example depends on it alone: for every kind of network."""

import keras
import numpy as np
import pytest

import bayesnorm
from tests.serving.networks import ENSEMBLES, NETWORKS

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

pytestmark = pytest.mark.tensorflow
SAMPLES, SEED, ROWS = 4, 3, 3


@pytest.fixture(params=[*NETWORKS, *ENSEMBLES])
def case(request, tmp_path):
    """Signatures of an exported network, its inputs by name, and what is right."""
    keras.utils.set_random_seed(1)
    network, x, arguments = (NETWORKS | ENSEMBLES)[request.param]()
    # Several passes, of which the last is not full.
    bayesnorm.export(network, tmp_path / "1", SAMPLES, chunk_size=21, **arguments)
    loaded = tf.saved_model.load(tmp_path / "1")
    model = network.model if isinstance(network, bayesnorm.WeightSets) else network
    names = [v.name for v in model.inputs] if isinstance(x, list) else ["inputs"]
    inputs = dict(zip(names, keras.tree.flatten(x), strict=True))

    def expected(method):
        found = bayesnorm.predict(
            *(network, x, SAMPLES, method), seed=SEED, verbose=False, **arguments
        )
        return found if isinstance(found, dict) else {None: found}

    return loaded, inputs, expected


def check_predictions(answer, predictions):
    for name, value in answer.items():
        output, _, field = name.rpartition("_")
        if field == "information":
            output, field = output.removesuffix("mutual").rstrip("_"), "mutual_" + field
        truth = getattr(predictions[output or None], field)
        np.testing.assert_allclose(value, truth, atol=1e-5, err_msg=name)


def padded(inputs, kind):
    """The first rows, with others before and behind them."""

    def around(x):
        first, own = x[:1], x[:ROWS]
        other = {
            "copies of the first": np.repeat(first, 5, axis=0),
            "zeros": np.zeros_like(x[:5]),
            "others, large": 100 * x[-4:],
            "not a number": np.full_like(x[:5], np.nan),
        }[kind]
        return np.concatenate([other[:2], own, other[2:]])

    return {name: around(x) for name, x in inputs.items()}


def test_answers_are_of_the_example_alone(case):
    loaded, inputs, expected = case
    own = {name: x[:ROWS] for name, x in inputs.items()}
    seeds = np.full(7, SEED)
    seeded = loaded.signatures["seeded"](**inputs, seed=seeds)
    check_predictions(seeded, expected("sample"))
    mean = loaded.signatures["mean"](**inputs)
    check_predictions(mean, expected("mean"))

    alone = {
        "seeded": loaded.signatures["seeded"](**own, seed=seeds[:ROWS]),
        "mean": loaded.signatures["mean"](**own),
    }
    kinds = ("copies of the first", "zeros", "others, large", "not a number")
    for kind in kinds:
        batch = padded(inputs, kind)
        rows = len(next(iter(batch.values())))
        seeds = np.concatenate(
            [[8, 9], np.full(ROWS, SEED), np.arange(rows - 2 - ROWS)]
        )
        answers = {
            "seeded": loaded.signatures["seeded"](**batch, seed=seeds),
            "mean": loaded.signatures["mean"](**batch),
        }
        for signature, answer in answers.items():
            for name, value in answer.items():
                np.testing.assert_allclose(
                    value[2 : 2 + ROWS],
                    alone[signature][name],
                    atol=1e-5,
                    err_msg=f"{signature}, {name}, {kind}",
                )
        for signature in ("serving_default", "samples"):
            for name, value in loaded.signatures[signature](**batch).items():
                assert np.isfinite(value[2 : 2 + ROWS]).all(), (signature, name, kind)
