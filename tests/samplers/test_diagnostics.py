"""Diagnostics: temperatures of chains of which they are known."""

import math

import keras
import numpy as np
import pytest
from keras import ops

from bayesnorm import samplers
from bayesnorm.samplers import diagnostics

N = 50


def run(sampler, steps=400, burn_in=200, noise=0.0, size=4000):
    """Samples standard normals, the gradient's noise of the variance `noise`."""
    from bayesnorm import backend

    # From the target itself: only momenta and thermostats have to settle.
    start = np.random.default_rng(5).normal(size=size).astype("float32")
    weights = keras.Variable(start, name="weights")
    sampler.verbose = False
    sampler.build([weights])

    def step(i, carry):
        seed = backend.fold_in(backend.seed_from_int(77), i)
        gradient = ops.convert_to_tensor(weights)
        gradient += math.sqrt(noise) * backend.stateless_normal((size,), seed)
        sampler.apply([gradient / N], [weights])
        return carry

    loop = backend.compiled_loop(step, [weights, *sampler.variables])
    loop(0, burn_in, [ops.zeros(())])
    diagnostics.reset(sampler)
    loop(burn_in, steps, [ops.zeros(())])
    return diagnostics.read(sampler)


TOY = {"learning_rate": 0.05, "mass": 1.0, "friction": 2.0, "seed": 1}


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("speed", [math.inf, 1.5])
def test_temperatures_are_the_target_s(speed, temperature):
    sampler = samplers.ATMC(N, speed_limit=speed, temperature=temperature, **TOY)
    (reading,) = run(sampler, steps=1500, burn_in=1000)
    assert reading.kinetic == pytest.approx(temperature, rel=0.03)
    assert reading.configurational == pytest.approx(temperature, rel=0.04)
    assert (reading.steps, reading.size) == (500, 4000)
    assert "as it is to" in diagnostics.verdict(sampler)
    assert "Too" not in diagnostics.verdict(sampler)


def test_noise_of_the_gradient_is_heat_or_is_found():
    # SGHMC's temperature is 1 + h V / (2 D m), to the first order in h.
    (reading,) = run(samplers.SGHMC(N, **TOY), noise=40.0)
    assert reading.kinetic == pytest.approx(1.5, rel=0.03)
    assert "Too hot" in diagnostics.verdict(samplers.SGHMC(N), [reading])
    assert reading.thermostat is None
    thermostatted = samplers.SGNHT(N, thermostat_mass=1.0, **TOY)
    (reading,) = run(thermostatted, steps=2500, burn_in=1500, noise=40.0)
    assert reading.kinetic == pytest.approx(1.0, rel=0.03)
    assert reading.thermostat == pytest.approx(1.0, rel=0.1)
    assert reading.gradient_noise == pytest.approx(40.0, rel=0.1)


def test_steps_are_measured():
    (reading,) = run(samplers.SGHMC(N, **TOY))
    assert reading.step == pytest.approx(0.05, rel=0.03)  # h sqrt(T / m)
    (reading,) = run(samplers.SGLD(N, learning_rate=0.01, seed=1), steps=500)
    assert reading.kinetic is None
    assert reading.step == pytest.approx(math.sqrt(0.02 + 1e-4), rel=0.03)
    assert reading.configurational == pytest.approx(1.0, rel=0.05)


def test_the_callback_logs_each_epoch(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(samplers.ATMC(32, seed=0), "mse")
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    callback = samplers.SamplerDiagnostics(tmp_path)
    history = model.fit(
        x, x[:, :3], batch_size=8, epochs=3, callbacks=[callback], verbose=0
    ).history
    for name in (
        "kinetic_temperature",
        "configurational_temperature",
        "rms_step",
        "thermostat",
    ):
        assert len(history[name]) == 3
        assert np.isfinite(history[name]).all()
    # Of the last epoch alone.
    assert {r.steps for r in diagnostics.read(model.optimizer)} == {4}
    said = capsys.readouterr().out
    assert "SGD of learning rate" in said
    assert "temperature is" in said
    if keras.backend.backend() == "tensorflow":
        assert list(tmp_path.glob("events*"))
    with pytest.raises(TypeError, match="must be a sampler"):
        diagnostics.read(keras.optimizers.SGD())


def test_means_are_over_all_weights():
    readings = [
        diagnostics.Reading("a", 1, 5, 1.0, 2.0, 3.0, None, None),
        diagnostics.Reading("b", 3, 5, 2.0, 0.0, 1.0, None, None),
    ]
    total = diagnostics.whole(readings)
    assert (total.size, total.steps, total.thermostat) == (4, 5, None)
    assert (total.kinetic, total.configurational) == (1.75, 0.5)
    assert total.step == pytest.approx(math.sqrt((9 + 3) / 4))
