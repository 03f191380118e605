"""Perturbed inputs against closed forms."""

import keras
import numpy as np
import pytest
from scipy import special

import bayesnorm


@pytest.fixture
def linear(rng):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    return model, np.array(model.layers[-1].kernel, "float64")


def test_gradient_sign_of_a_linear_classifier(linear, rng):
    model, kernel = linear
    x = rng.normal(size=(50, 6)).astype("float32")
    labels = rng.integers(0, 3, 50)
    p = special.softmax(x @ kernel, axis=1)
    gradient = (p - np.eye(3)[labels]) @ kernel.T
    got = bayesnorm.gradient_sign(
        model, x, labels, 0.25, batch_size=20, from_logits=True
    )
    expected = x + 0.25 * np.sign(gradient)
    clear = np.abs(gradient) > 1e-5
    np.testing.assert_allclose(got[clear], expected[clear], atol=1e-6)
    # No other step of that size raises the NLL of this convex problem's line more.
    assert _nll(got, kernel, labels) > _nll(x, kernel, labels)
    still = bayesnorm.gradient_sign(model, x, labels, 0.0, from_logits=True)
    np.testing.assert_array_equal(still, x)


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_gradient_sign_of_a_single_output(rng, activation):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(1, activation)(inputs))
    x = rng.normal(size=(40, 6)).astype("float32")
    labels = rng.integers(0, 2, 40)
    # The NLL of label 1 falls with the logit, that of label 0 rises.
    kernel = np.array(model.layers[-1].kernel)[:, 0]
    expected = x + 0.1 * np.where(labels[:, None], -1, 1) * np.sign(kernel)
    got = bayesnorm.gradient_sign(model, x, labels, 0.1, from_logits=activation is None)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def _nll(x, kernel, labels):
    logits = x @ kernel
    return (special.logsumexp(logits, 1) - logits[np.arange(len(x)), labels]).mean()


def test_gaussian_noise(rng):
    x = rng.uniform(size=(400, 50))
    noisy = bayesnorm.gaussian_noise(x, 0.3, seed=1)
    difference = noisy - x
    assert abs(difference.mean()) < 5 * 0.3 / np.sqrt(x.size)
    assert difference.std() == pytest.approx(0.3, rel=0.03)
    twice = bayesnorm.gaussian_noise(x, 0.6, seed=1)
    np.testing.assert_allclose(twice - x, 2 * difference, atol=1e-6)
    clipped = bayesnorm.gaussian_noise(x, 0.3, seed=1, bounds=(0, 1))
    np.testing.assert_allclose(clipped, np.clip(noisy, 0, 1))


def test_errors(linear):
    model, _ = linear
    x, labels = np.zeros((4, 6)), np.zeros(4, int)
    with pytest.raises(ValueError, match="epsilon"):
        bayesnorm.gradient_sign(model, x, labels, -1, from_logits=True)
    with pytest.raises(ValueError, match="one number of examples"):
        bayesnorm.gradient_sign(model, x, labels[:2], 0.1, from_logits=True)
    for wrong in (labels + 3, labels - 1, labels * 1.0):
        with pytest.raises(ValueError, match="from 0 to 2, the classes"):
            bayesnorm.gradient_sign(model, x, wrong, 0.1, from_logits=True)
    with pytest.raises(ValueError, match="stddev"):
        bayesnorm.gaussian_noise(x, float("nan"))
    with pytest.raises(ValueError, match="bounds"):
        bayesnorm.gaussian_noise(x, 0.1, bounds=(1, 0))
