"""Schedules against closed forms, optimizers by name, callbacks."""

import keras
import numpy as np
import pytest

from bayesnorm import datasets
from bayesnorm.training.checkpoints import Checkpoints
from bayesnorm.training.loop import Config, Loop, fit
from bayesnorm.training.optimization import make_optimizer


@pytest.fixture
def splits(rng):
    def part(n):
        return rng.normal(size=(n, 2, 2, 1)).astype("float32"), rng.integers(0, 2, n)

    return datasets.from_arrays(part(24), part(8), part(8))


def linear_loop(splits, optimizer="sgd", **config):
    model = keras.Sequential(
        [
            keras.Input((2, 2, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(2, kernel_initializer="zeros"),
        ]
    )
    config = {"epochs": 2, "batch_size": 8, "steps_per_call": 2} | config
    return Loop(model, make_optimizer(optimizer), splits, Config(**config))


def test_the_linear_schedule_falls_to_zero():
    config = Config(epochs=4, learning_rate=0.2, schedule="linear")
    rates = [config.learning_rates(epoch, 2) for epoch in range(5)]
    expected = np.repeat([[0.2], [0.15], [0.1], [0.05], [0.0]], 2, axis=1)
    np.testing.assert_allclose(rates, expected, atol=1e-15)
    with pytest.raises(ValueError, match=r"`schedule`.*'cosines'"):
        Config(epochs=4, schedule="cosines")


def test_a_schedule_begins_where_it_is_told_to():
    def rates(schedule, **changes):
        config = Config(
            epochs=8,
            learning_rate=0.2,
            schedule=schedule,
            decay_start=0.5,
            decay=0.01,
            **changes,
        )
        return [config.learning_rates(epoch, 1)[0] for epoch in range(9)]

    # As in Neklyudov et al. (2017): half of the epochs, then linearly to 0.
    expected = [0.2] * 5 + [0.15, 0.1, 0.05, 0.0]
    np.testing.assert_allclose(rates("linear"), expected, atol=1e-15)
    falling = [0.2 * 0.01 ** (k / 4) for k in range(5)]
    np.testing.assert_allclose(rates("exponential"), [0.2] * 4 + falling)
    assert rates("cosine")[4] == rates("cosine")[0] == pytest.approx(0.2)
    assert rates("cosine")[8] == pytest.approx(0.0)
    assert rates(lambda step: 0.1 * step) == pytest.approx(np.arange(9) * 0.1)
    # Fewer epochs than that: the part is of the schedule's.
    assert rates("linear", decay_epochs=4)[2:5] == pytest.approx([0.2, 0.1, 0.0])
    for wrong in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="`decay_start` must be a part"):
            Config(epochs=2, decay_start=wrong)


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop"])
def test_some_variables_have_a_rate_of_their_own(name):
    variables = [keras.Variable(np.ones(3, "float32")) for _ in range(3)]
    plain = [keras.Variable(np.ones(3, "float32")) for _ in range(3)]
    optimizer = make_optimizer(name, 0.01, [(variables[1:2], 10.0)])
    gradients = [keras.ops.convert_to_tensor([1.0, -2.0, 0.5]) for _ in range(3)]
    optimizer.apply(gradients, variables)
    make_optimizer(name, 0.01).apply(gradients, plain)
    moves, normal = ([np.asarray(v) - 1 for v in of] for of in (variables, plain))
    np.testing.assert_array_equal(moves[0], normal[0])
    np.testing.assert_array_equal(moves[2], normal[2])
    np.testing.assert_allclose(moves[1], 10 * normal[1], rtol=1e-4)


def test_learning_rate_falls_as_in_the_paper():
    config = Config(epochs=1200, learning_rate=0.3, decay=0.1, decay_epochs=600)
    assert config.learning_rates(0, 3) == [0.3] * 3
    assert config.learning_rates(600, 1) == pytest.approx([0.03])
    short = Config(epochs=40, learning_rate=0.3)
    for epoch in (0, 10, 39):
        assert short.learning_rates(epoch, 1) == pytest.approx(
            config.learning_rates(30 * epoch, 1)
        )


def test_rates_of_steps_are_those_of_keras():
    # Six epochs of the schedule in eight of training: it stays at its end.
    config = Config(8, learning_rate=0.3, schedule="cosine", decay_epochs=6)
    cosine = keras.optimizers.schedules.CosineDecay(0.3, 6 * 5)
    own = Config(8, schedule=cosine)
    for epoch in (0, 3, 7):
        expected = [float(cosine(5 * epoch + i)) for i in range(5)]
        assert config.learning_rates(epoch, 5) == pytest.approx(expected, abs=1e-7)
        assert own.learning_rates(epoch, 5) == expected
    assert Config(3, learning_rate=0.2, schedule="constant").learning_rates(2, 2) == [
        0.2,
        0.2,
    ]
    with pytest.raises(ValueError, match=r"-1\.0 for step 0"):
        Config(3, schedule=lambda step: step - 1).learning_rates(0, 2)


def test_every_step_takes_its_rate(splits):
    # Gradients of a first step are known; of plain SGD all moves show the rates.
    rates = [0.5, 0.0, 0.0, 0.0, 0.0, 0.25]

    def moves(rates):
        loop = linear_loop(
            splits, keras.optimizers.SGD(1.0), schedule=lambda step: rates[step]
        )
        history = fit(loop)
        assert [row["learning_rate"] for row in history] == [rates[0], rates[3]]
        return np.array(loop.model.layers[-1].kernel)

    first, last = moves([0.5] + [0.0] * 5), moves(rates)
    again = moves([0.0] * 3 + [0.5, 0.0, 0.0])
    assert np.abs(first).max() > 1e-3
    assert np.abs(last - first).max() > 1e-4
    # The fourth step has other examples than the first.
    assert np.abs(again - first).max() > 1e-4


def test_an_optimizer_keeps_a_schedule_of_its_own(splits):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.5, 0.125])
    loop = linear_loop(splits, keras.optimizers.SGD(schedule))
    history = fit(loop)
    assert [row["learning_rate"] for row in history] == [0.5, 0.125]
    same = linear_loop(
        splits, keras.optimizers.SGD(0.1), schedule=lambda i: 0.5 if i <= 2 else 0.125
    )
    fit(same)
    for a, b in zip(loop.model.get_weights(), same.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="schedule of its own"):
        loop.train_epoch(0, learning_rate=0.1)


def test_optimizers_by_name():
    sgd = make_optimizer("sgd", 0.3)
    assert (sgd.momentum, sgd.nesterov, float(sgd.learning_rate)) == (
        0.9,
        True,
        pytest.approx(0.3),
    )
    assert type(make_optimizer("adamw")) is keras.optimizers.AdamW
    assert make_optimizer(sgd) is sgd
    assert make_optimizer("adam", beta_1=0.95).beta_1 == 0.95
    assert make_optimizer("adam", beta_1=None).beta_1 == 0.9
    with pytest.raises(ValueError, match=r"'sgd' has no argument \['beta_1'\]"):
        make_optimizer("sgd", beta_1=0.95)
    with pytest.raises(ValueError, match="of an optimizer that is made"):
        make_optimizer(sgd, beta_1=0.95)
    with pytest.raises(ValueError, match=r"'adam'.*'sgd'.*Received: 'sdg'"):
        make_optimizer("sdg")


class Diary(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.entries = []

    def on_train_begin(self, logs=None):
        self.entries.append(("begin", len(self.params["history"])))

    def on_train_end(self, logs=None):
        self.entries.append(("end", len(self.params["history"])))

    def on_epoch_begin(self, epoch, logs=None):
        self.entries.append(("epoch begins", epoch))

    def on_epoch_end(self, epoch, logs=None):
        self.entries.append(("epoch ends", epoch))
        self.logs = logs

    def on_train_batch_begin(self, batch, logs=None):
        self.entries.append(("call begins", batch))

    def on_train_batch_end(self, batch, logs=None):
        self.entries.append(("call ends", batch))
        self.batch_logs = logs


def test_callbacks_are_called_in_order(splits):
    diary = Diary()
    loop = linear_loop(splits)
    history = fit(loop, callbacks=[diary])
    # Three steps in calls of two.
    epoch = [("call begins", 0), ("call ends", 1), ("call begins", 2), ("call ends", 2)]
    assert diary.entries == [
        ("begin", 0),
        *[("epoch begins", 0), *epoch, ("epoch ends", 0)],
        *[("epoch begins", 1), *epoch, ("epoch ends", 1)],
        ("end", 2),
    ]
    assert diary.model is loop.model
    assert diary.logs == history[-1]
    assert diary.batch_logs == {k: history[-1][k] for k in ("loss", "nll", "accuracy")}


def test_early_stopping_ends_a_run_and_what_a_callback_did_is_kept(splits, tmp_path):
    loop = linear_loop(splits, epochs=5, learning_rate=1e-6)

    def mark(epoch, logs):
        loop.model.layers[-1].bias.assign([epoch + 1, 0])

    callbacks = [
        keras.callbacks.LambdaCallback(on_epoch_end=mark),
        # The marks make each epoch worse than the first.
        keras.callbacks.EarlyStopping("nll", mode="min", patience=1),
    ]
    checkpoints = Checkpoints(tmp_path, every=10)
    assert len(fit(loop, checkpoints, callbacks)) == 2
    saved = checkpoints.latest()
    assert len(saved.history) == 2
    assert any(np.array_equal(value, [2, 0]) for value in saved.values)
