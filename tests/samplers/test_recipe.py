"""The guide's recipe on digits: what makes an average of samples a good prediction."""

import keras
import pytest

import bayesnorm
from bayesnorm import datasets, metrics, models, samplers
from bayesnorm.training.loop import Config, Loop, fit
from bayesnorm.training.parts import of_splits

# Chains of eight thousand steps.
pytestmark = pytest.mark.slow

CYCLE, BATCH, BURN_IN, EPOCHS = 10, 64, 100, 400


def _network(digits, **priors):
    keras.utils.set_random_seed(0)
    return models.mlp(
        digits.image_shape,
        digits.num_classes,
        units=(100, 100),
        input_mean=digits.channel_mean,
        input_variance=digits.channel_stddev**2,
        seed=0,
        **priors,
    )


def _sampled(digits, folder, stddev, rms_step):
    """Returns Brier score and ECE of the average of 30 samples; their mean score."""
    number = len(digits.train)
    model = _network(digits, num_examples=number, prior_stddev=stddev)
    sampler = samplers.ATMC(
        number,
        samplers.CyclicalCosine(0.001, CYCLE * (number // BATCH)),
        mass=(0.001 / rms_step) ** 2,
        friction=20.0,
        thermostat_mass=0.01,
        seed=0,
        verbose=False,
    )
    config = Config(epochs=EPOCHS, batch_size=BATCH, learning_rate=0.001)
    fit(
        Loop(model, sampler, of_splits(digits), config),
        callbacks=[samplers.PosteriorSamples(folder, CYCLE, BURN_IN)],
    )
    posterior = samplers.PosteriorSamples.load(folder, model)
    assert len(posterior) == (EPOCHS - BURN_IN) // CYCLE
    prediction = bayesnorm.predict(
        posterior,
        digits.inputs(digits.test.images),
        method="mean",
        from_logits=True,
        keep_samples=True,
    )
    labels = digits.test.labels
    singles = [metrics.brier(probs, labels) for probs in prediction.samples]
    return (
        metrics.brier(prediction.probs, labels),
        metrics.ece_equal_width(prediction.probs, labels),
        sum(singles) / len(singles),
    )


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


def test_an_average_under_a_wide_prior_is_what_predicts_well(digits, tmp_path):
    brier, ece, of_one = _sampled(digits, tmp_path / "wide", 1.0, 0.003)
    narrow, narrow_ece, _ = _sampled(digits, tmp_path / "narrow", 0.15, 0.002)
    # A sample is confident where it errs.
    assert brier < 0.7 * of_one
    # Under a narrow prior the average is not where it is right.
    assert brier < 0.7 * narrow
    assert ece < 0.4 * narrow_ece
