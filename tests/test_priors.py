"""The priors: values and gradients in closed form, their laws by quadrature."""

import json

import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy import special

from bayesnorm import priors
from tests.helpers import DTYPES, gradients, tensor

N = 4
VECTOR = [3.0, -4.0, 12.0]


def _value(prior, x, dtype="float32"):
    return float(prior(tensor(x, dtype)))


def _gradient(prior, x, dtype="float32"):
    return gradients(lambda v: [prior(v)], x, dtype=dtype)[0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_laplace_of_one_group(dtype):
    prior = priors.GroupLaplace(N, axis=None)
    rtol = {"float32": 1e-6, "float64": 1e-13}[dtype]
    np.testing.assert_allclose(N * _value(prior, VECTOR, dtype), 2.6, rtol=rtol)
    truth = [0.046153846153846156, -0.06153846153846154, 0.18461538461538463]
    np.testing.assert_allclose(
        N * _gradient(prior, VECTOR, dtype), truth, rtol=rtol, atol=0
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [(), 0, -1, (0, 1), (2, 0), [1], None])
def test_group_laplace_sums_over_groups(axis, dtype, rng):
    x = rng.normal(size=(3, 2, 4))
    x[:, 0, 1] = 0.0
    prior = priors.GroupLaplace(N, scale=0.7, axis=axis)
    if axis == ():
        norms = np.abs(x)
    else:
        axes = tuple(np.atleast_1d(axis)) if axis is not None else None
        norms = np.sqrt(np.sum(x**2, axes, keepdims=True))
    rtol = {"float32": 1e-6, "float64": 1e-13}[dtype]
    truth = norms.sum() / 0.7 / N
    np.testing.assert_allclose(_value(prior, x, dtype), truth, rtol=rtol)
    slope = np.where(norms > 0, x / np.where(norms > 0, norms, 1), 0) / 0.7 / N
    np.testing.assert_allclose(
        _gradient(prior, x, dtype), slope, rtol=5 * rtol, atol=1e-15
    )


@pytest.mark.parametrize("axis", [(), 1])
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-30, 1e-20, 1e20, 1e36])
def test_group_laplace_of_small_and_large_numbers(size, axis):
    x = size * np.asarray([VECTOR], "float32")
    prior = priors.GroupLaplace(1, scale=1.0, axis=axis)
    norms = np.abs(x) if axis == () else 13 * size
    np.testing.assert_allclose(
        _value(prior, x), np.sum(norms, dtype="float64"), rtol=1e-5, atol=1e-36
    )
    gradient = _gradient(prior, x)
    assert np.isfinite(gradient).all()
    direction = np.sign(VECTOR) if axis == () else np.asarray(VECTOR) / 13
    if size > 1e-36:
        np.testing.assert_allclose(gradient[0], direction, rtol=1e-5)
    if size == 0:
        np.testing.assert_array_equal(gradient, 0)


def _radial(prior, d, radii):
    """`-log p` at weights of the given lengths, in a direction of their own."""
    v = np.random.default_rng(1).normal(size=d)
    v /= np.linalg.norm(v)
    axes = len(radii), d, 1
    x = tensor((np.asarray(radii)[:, None] * v).reshape(axes))
    return np.asarray(ops.vectorized_map(prior.energy, x), "float64")


def test_the_density_of_group_laplace_integrates_to_one():
    d, scale = 3, 5.0
    log_normalizer = 8.052485164831538
    area = 2 * np.pi ** (d / 2) / special.gamma(d / 2)
    truth = np.log(area * special.gamma(d) * scale**d)
    np.testing.assert_allclose(log_normalizer, truth, rtol=1e-14)
    r = np.linspace(0, 200, 20_001)
    energy = _radial(priors.GroupLaplace(1, scale, axis=None), d, r)
    integral = np.trapezoid(area * r ** (d - 1) * np.exp(-energy), r)
    np.testing.assert_allclose(np.log(integral), log_normalizer, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "axis", "axes"),
    [
        ((5, 3), None, (0,)),
        ((3, 3, 2, 4), None, (0, 1, 2)),
        ((3, 3, 4, 2), (0, 1), (0, 1)),
        ((3, 3, 4, 2), (0, 1, -1), (0, 1, 3)),
        ((6,), 0, (0,)),
    ],
)
def test_unit_length(shape, axis, axes, dtype, rng):
    v = rng.normal(size=shape)
    d = np.prod([shape[i] for i in axes])
    excess = np.sum(v**2, axes, keepdims=True) - 1
    prior = priors.UnitLength(N, axis=axis)
    rtol = {"float32": 3e-6, "float64": 1e-13}[dtype]
    truth = d / 2 * np.sum(excess**2) / N
    np.testing.assert_allclose(_value(prior, v, dtype), truth, rtol=rtol)
    slope = 2 * d * excess * v / N
    np.testing.assert_allclose(
        _gradient(prior, v, dtype), slope, rtol=rtol, atol=rtol * np.abs(slope).max()
    )


@pytest.mark.parametrize(("d", "mode"), [(1, 1.0), (9, None), (576, 1.16856)])
def test_the_length_of_directions_has_the_mode_of_the_docstring(d, mode):
    u = (1 + np.sqrt(1 + 2 * (d - 1) / d)) / 2
    if mode is not None:
        np.testing.assert_allclose(np.sqrt(u), mode, rtol=1e-5)
    r = np.linspace(0.8, 1.5, 7001)
    log = (d - 1) * np.log(r) - _radial(priors.UnitLength(1), d, r)
    # The top of a parabola through what is near: the values are float32.
    near = np.abs(r - r[np.argmax(log)]) < 0.02
    a, b, _ = np.polyfit(r[near] - r[near].mean(), log[near], 2)
    np.testing.assert_allclose(r[near].mean() - b / (2 * a), np.sqrt(u), atol=5e-4)
    if d == 576:
        density = np.exp(log - log.max())
        density /= np.trapezoid(density, r)
        mean = np.trapezoid(r * density, r)
        stddev = np.sqrt(np.trapezoid((r - mean) ** 2 * density, r))
        np.testing.assert_allclose(stddev, 0.38 / np.sqrt(d), rtol=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
def test_normal(dtype, rng):
    x = rng.normal(size=(3, 4))
    prior = priors.Normal(N, stddev=0.5)
    rtol = {"float32": 1e-6, "float64": 1e-13}[dtype]
    truth = np.sum(x**2) / (2 * 0.25) / N
    np.testing.assert_allclose(_value(prior, x, dtype), truth, rtol=rtol)
    np.testing.assert_allclose(_gradient(prior, x, dtype), x / 0.25 / N, rtol=rtol)


ALL = [
    priors.GroupLaplace(50, scale=2.0, axis=(0, 1)),
    priors.GroupLaplace(50),
    priors.GroupLaplace(50, axis=None),
    priors.UnitLength(50, axis=0),
    priors.UnitLength(50),
    priors.Normal(50, stddev=0.3),
]


@pytest.mark.parametrize("prior", ALL)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(prior, dtype):
    # Sums and squares leave float16, and bfloat16 would lose the small ones.
    x = ops.cast(tensor(np.full((64, 64), 300.0)), dtype)
    value = prior(x)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    truth = _value(prior, ops.convert_to_numpy(ops.cast(x, "float32")))
    assert np.isfinite(truth)
    np.testing.assert_allclose(float(value), truth, rtol=1e-6)


@pytest.mark.parametrize("prior", ALL)
def test_round_trips(prior, tmp_path):
    config = json.loads(json.dumps(prior.get_config()))
    assert type(prior).from_config(config).get_config() == prior.get_config()
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.Dense(3, kernel_regularizer=prior)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    found = loaded.layers[-1].kernel.regularizer
    assert type(found) is type(prior)
    assert found.get_config() == prior.get_config()
    np.testing.assert_array_equal(loaded.losses, model.losses)
    assert float(model.losses[0]) > 0


def test_a_step_follows_the_gradient_of_the_posterior(rng):
    """Of a regression, in float64: N times that of `mean NLL + sum(regularizers)`."""
    n, rate, scale, stddev = 20, 0.1, 0.5, 2.0
    x, y = rng.normal(size=(n, 4)), rng.normal(size=(n, 2))
    w, v, b = rng.normal(size=(4, 3)), rng.normal(size=(3, 2)), rng.normal(size=2)
    inputs = keras.Input((4,))
    hidden = layers.Dense(
        3, use_bias=False, kernel_regularizer=priors.GroupLaplace(n, scale, axis=0)
    )(inputs)
    outputs = layers.Dense(
        2,
        kernel_regularizer=priors.UnitLength(n),
        bias_regularizer=priors.Normal(n, stddev),
    )(hidden)
    model = keras.Model(inputs, outputs)
    model.set_weights([w, v, b])

    def nll(truth, predicted):  # Of the two outputs of an example, variance 1.
        return ops.sum(ops.square(truth - predicted), -1) / 2

    model.compile(keras.optimizers.SGD(rate), nll)
    model.fit(x.astype("float32"), y.astype("float32"), batch_size=n, verbose=0)
    residual = x @ w @ v + b - y
    length = np.sum(v**2, 0) - 1
    truth = [
        x.T @ residual @ v.T + w / np.linalg.norm(w, axis=0) / scale,
        w.T @ x.T @ residual + 2 * 3 * length * v,
        residual.sum(0) + b / stddev**2,
    ]
    for before, after, gradient in zip(
        [w, v, b], model.get_weights(), truth, strict=True
    ):
        found = n * (before - after) / rate
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priors.Normal(0), "`num_examples` must be an integer from 1"),
        (lambda: priors.Normal(2.5), "`num_examples` must be an integer from 1"),
        (lambda: priors.Normal(5, stddev=0), "`stddev` must be a finite number above"),
        (lambda: priors.GroupLaplace(5, scale=-1), "`scale` must be a finite number"),
        (lambda: priors.GroupLaplace(5, axis=1.5), "`axis` must be an integer, a tup"),
        (lambda: priors.GroupLaplace(5, axis=(0, 0)), "different ones"),
        (lambda: priors.UnitLength(5, axis=()), "must name the axes of the norm"),
        (lambda: priors.GroupLaplace(5, axis=2), r"from -2 to 1.*shape \(3, 2\)"),
        (lambda: priors.GroupLaplace(5, axis=(0, -2)), "must name different axes"),
        (lambda: priors.UnitLength(5, axis=(0, 3)), "from -2 to 1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()(np.ones((3, 2), "float32"))


def test_a_vector_is_no_kernel():
    with pytest.raises(ValueError, match=r"give `axis`.*shape \(3,\)"):
        priors.UnitLength(5)(np.ones(3, "float32"))
