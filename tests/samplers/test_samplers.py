"""Samplers as optimizers: their steps, saving, strategies, `fit`."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops

from bayesnorm import samplers
from tests.helpers import DTYPES, long

ETAS = [0.5, -1.2, 0.3, 0.9, -0.4]


class Given(samplers.ATMC):
    """Draws what it is given."""

    def _noise(self, variable, index):
        noise = ops.take(np.asarray(ETAS), self.iterations)
        return ops.cast(ops.reshape(noise, variable.shape), variable.dtype)


class GivenSGNHT(samplers.SGNHT):
    _noise = Given._noise


# Five steps on U = 1.5 theta^2 / 2 from 0.8: theta, p, xi in float64, computed by
# another implementation.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "arguments", "truth"),
    [
        (Given, {"speed_limit": 0.7}, (0.69970724, -0.4143053139, -0.3458110857)),
        (GivenSGNHT, {}, (0.68421560463, -0.42118047029, -0.43829115967)),
        (
            Given,
            {"speed_limit": 0.7, "exact_kick": True},
            (0.69963891466, -0.41464174787, -0.34570004189),
        ),
    ],
)
def test_five_steps(dtype, kind, arguments, truth):
    theta = keras.Variable(0.8, dtype=dtype)
    sampler = kind(10, 0.1, friction=1.0, mass=1.3, thermostat_mass=1.0, **arguments)
    for _ in ETAS:
        sampler.apply([1.5 * ops.convert_to_tensor(theta) / 10], [theta])
    got = [
        float(v.numpy() if hasattr(v, "numpy") else v)
        for v in (theta.value, sampler.momenta[0].value, sampler.thermostats[0].value)
    ]
    rtol = 1e-7 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(got, truth, rtol=rtol)


def test_the_paper_s_constants():
    sampler = samplers.ATMC(50_000)
    assert sampler.mass == pytest.approx(11.111111111111112, rel=1e-12)
    assert sampler.speed_limit == 1.0
    assert sampler.friction == pytest.approx(105.36051565782628, rel=1e-12)
    for rate in (0.001, 0.0005, 3.0):
        sgd, momentum = samplers.ATMC(50_000, rate).equivalent_sgd()
        assert momentum == pytest.approx(0.9)
        assert sgd == pytest.approx(0.0045 * 0.1 / -math.log(0.9))


def data(number=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(number, 6)).astype("float32")
    return x, (x[:, 0] > 0).astype("int64")


def network(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dense(2),
        ]
    )


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
KINDS = [
    lambda **kw: samplers.ATMC(64, **kw),
    lambda **kw: samplers.SGNHT(64, **kw),
    lambda **kw: samplers.SGHMC(64, **kw),
    lambda **kw: samplers.SGLD(64, **kw),
]
IDS = ["atmc", "sgnht", "sghmc", "sgld"]
# Where SGNHT and SGHMC do nothing of their own.
SOME = [KINDS[0], long(KINDS[1]), long(KINDS[2]), KINDS[3]]


def trained(sampler, epochs=3, jit=False, **kwargs):
    model = network()
    model.compile(sampler, LOSS, jit_compile=jit)
    model.fit(*data(), batch_size=16, epochs=epochs, shuffle=False, verbose=0, **kwargs)
    return model


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
@pytest.mark.parametrize("exact", [False, True])
def test_at_temperature_0_it_is_sgd_with_momentum(kind, exact):
    if exact and kind is KINDS[3]:
        pytest.skip("has one kick")
    arguments = {"exact_kick": exact} if kind is not KINDS[3] else {}
    if kind is KINDS[0]:
        arguments["speed_limit"] = math.inf
    sampler = kind(temperature=0.0, verbose=False, **arguments)
    rate, momentum = sampler.equivalent_sgd()
    got = trained(sampler).get_weights()
    truth = trained(keras.optimizers.SGD(rate, momentum)).get_weights()
    for a, b in zip(got, truth, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", SOME, ids=IDS)
def test_draws_follow_from_the_seed_alone(kind):
    first = trained(kind(seed=3, verbose=False)).get_weights()
    same = trained(kind(seed=3, verbose=False)).get_weights()
    other = trained(kind(seed=4, verbose=False)).get_weights()
    for a, b, c in zip(first, same, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.allclose(a, c)


def test_compiled_by_xla_it_takes_the_same_steps():
    # Without noise: XLA's of TensorFlow has other draws of the same seeds.
    plain = trained(samplers.ATMC(64, temperature=0.0, seed=3))
    fused = trained(samplers.ATMC(64, temperature=0.0, seed=3), jit=True)
    for a, b in zip(plain.get_weights(), fused.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", SOME, ids=IDS)
def test_a_saved_chain_goes_on(kind, tmp_path):
    rate = samplers.CyclicalCosine(0.001, 7)
    whole = trained(kind(seed=3, learning_rate=rate), epochs=4)
    half = trained(kind(seed=3, learning_rate=rate), epochs=2)
    half.save(tmp_path / "half.keras")
    again = keras.models.load_model(tmp_path / "half.keras")
    again.fit(*data(), batch_size=16, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(whole.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(whole.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_config(kind):
    sampler = kind(learning_rate=0.002, temperature=0.5, seed=9)
    again = type(sampler).from_config(sampler.get_config())
    assert again.get_config() == sampler.get_config()
    # A rate that was changed on the way does not change mass and friction.
    sampler.learning_rate = 0.0004
    again = keras.optimizers.deserialize(keras.optimizers.serialize(sampler))
    assert again.get_config() == sampler.get_config()


def test_it_prints_the_sgd_that_takes_its_steps(capsys):
    samplers.ATMC(50_000, name="atmc").build([keras.Variable(1.0)])
    assert capsys.readouterr().out == (
        "atmc: SGD of learning rate 0.00427 and momentum 0.9, with noise of "
        "temperature 1\n"
    )


def test_errors():
    with pytest.raises(ValueError, match=r"weight_decay.*Normal"):
        samplers.ATMC(10, weight_decay=0.1)
    with pytest.raises(ValueError, match="speed_limit"):
        samplers.SGNHT(10, clipnorm=1.0)
    with pytest.raises(ValueError, match="num_examples"):
        samplers.ATMC(0)
    with pytest.raises(ValueError, match="temperature"):
        samplers.SGLD(10, temperature=-1)
    with pytest.raises(ValueError, match="mass"):
        samplers.SGHMC(10, mass=0)
    with pytest.raises(ValueError, match="thermostat_mass"):
        samplers.ATMC(10, thermostat_mass=0)
    with pytest.raises(ValueError, match="first learning rate"):
        samplers.ATMC(10, learning_rate=lambda: 0.0)
    with pytest.raises(ValueError, match="mixed_bfloat16"):
        samplers.ATMC(10).build([keras.Variable(1.0, dtype="bfloat16")])
    constrained = layers.Dense(2, kernel_constraint="unit_norm")
    constrained.build((None, 3))
    with pytest.warns(UserWarning, match=r"kernel.*constraint"):
        samplers.ATMC(10).build(constrained.trainable_variables)


@pytest.mark.parametrize("kind", [samplers.ATMC, samplers.SGNHT, samplers.SGHMC])
def test_integers_are_the_numbers_they_stand_for(kind):
    numbers = {"learning_rate": 1, "friction": 2, "mass": 3, "temperature": 1}
    if kind is not samplers.SGHMC:
        numbers["thermostat_mass"] = 4
    found = []
    for convert in (int, float):
        values = {name: convert(value) for name, value in numbers.items()}
        variable = keras.Variable([1.0, 2.0])
        sampler = kind(10, seed=0, verbose=False, **values)
        sampler.build([variable])
        for _ in range(3):
            sampler.apply([variable.value * 0.1])
        found.append(np.array(variable))
    np.testing.assert_array_equal(*found)


def test_mixed_precision_keeps_float32_state():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = trained(samplers.ATMC(64, seed=1))
    assert {v.dtype for v in model.optimizer.momenta} == {"float32"}
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_accumulated_gradients_are_those_of_the_whole_batch():
    def run(batch, **kwargs):
        model = network()
        # No batch statistics: they differ.
        model = keras.Sequential([model.layers[0], model.layers[2]])
        model.compile(samplers.ATMC(64, seed=3, **kwargs), LOSS)
        model.fit(*data(), batch_size=batch, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    for a, b in zip(run(32), run(16, gradient_accumulation_steps=2), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_no_step_is_longer_than_the_limit():
    theta = keras.Variable(np.zeros(5, "float32"))
    sampler = samplers.ATMC(1000, seed=0)
    sampler.apply([ops.convert_to_tensor([-1e9, -1.0, 0.0, 1.0, 1e9])], [theta])
    steps = np.array(theta.value)
    assert np.abs(steps).max() <= 0.001 * (1 + 1e-6)
    assert steps[0] == pytest.approx(0.001)


def test_cyclical_cosine():
    schedule = samplers.CyclicalCosine(0.001, 50)
    assert float(schedule(62)) == pytest.approx(0.0008644843137107057, rel=1e-6)
    assert float(schedule(0)) == float(schedule(50)) == pytest.approx(0.001)
    # float32 does not hold such a number.
    assert float(schedule(50 * 10**7 + 1)) == pytest.approx(float(schedule(1)))
    again = keras.optimizers.schedules.deserialize(
        keras.optimizers.schedules.serialize(schedule)
    )
    assert again.get_config() == schedule.get_config()
    with pytest.raises(ValueError, match="cycle_steps"):
        samplers.CyclicalCosine(0.1, 0)


def test_embeddings_have_their_sparse_gradients():
    model = keras.Sequential(
        [layers.Embedding(5, 3), layers.Flatten(), layers.Dense(2)]
    )
    model.compile(samplers.ATMC(10, seed=0), LOSS)
    model.fit(np.array([[0, 1], [2, 3]]), np.array([0, 1]), verbose=0)
    # The prior's noise moves the row that no example has, too.
    assert all(np.isfinite(w).all() for w in model.get_weights())
