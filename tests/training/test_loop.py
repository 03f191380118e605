"""The fit loop: steps against closed forms, resuming, schedules, divergence."""

import functools

import keras
import numpy as np
import pytest
from scipy import special

import bayesnorm.layers as layers
from bayesnorm import backend, datasets
from bayesnorm.training.checkpoints import Checkpoints
from bayesnorm.training.loop import Config, DivergenceError, Loop, fit
from bayesnorm.training.optimization import make_optimizer
from bayesnorm.training.simultaneous import Loops, member_row
from bayesnorm.training.sources import training_order, with_normalization_batch
from tests.helpers import long

N, CLASSES = 50, 3


@pytest.fixture
def splits(rng):
    def part(n):
        images = rng.normal(size=(n, 4, 4, 1)).astype("float32")
        return images, rng.integers(0, CLASSES, n)

    return datasets.from_arrays(part(N), part(23), part(8), class_names=list("abc"))


def linear_model():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES, kernel_initializer="zeros"),
        ]
    )
    return model


def bayesian_model(seed=0):
    """Noise, a projected kernel and batch statistics: all kinds of state."""
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.WeightNormalization(
                keras.layers.Conv2D(
                    5, 3, kernel_initializer=keras.initializers.HeNormal(seed)
                ),
                projection=True,
                name="norm",
            ),
            layers.StochasticScaleNorm(seed=seed, name="scale"),
            keras.layers.LeakyReLU(0.01),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(
                CLASSES, kernel_initializer=keras.initializers.HeNormal(seed + 1)
            ),
        ]
    )


def bayesian_loop(splits, model_seed=0, **config):
    config = {"epochs": 3, "batch_size": 8, "learning_rate": 0.05, **config}
    return Loop(
        bayesian_model(model_seed),
        make_optimizer("sgd"),
        splits,
        Config(**config),
        augment=datasets.RandomShift(1, seed=5 + model_seed),
    )


def assert_equal_states(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_order_is_a_permutation_that_depends_on_seed_and_epoch():
    order = training_order(103, 10, seed=3, epoch=4)
    assert order.shape == (10, 10)
    assert len(np.unique(order)) == 100
    assert order.min() >= 0
    assert order.max() < 103
    np.testing.assert_array_equal(order, training_order(103, 10, 3, 4))
    for seed, epoch in ((3, 5), (4, 4), (4, 3)):
        assert (order != training_order(103, 10, seed, epoch)).mean() > 0.9


@pytest.mark.parametrize("steps_per_call", [1, 4, 100])
def test_epochs_are_nesterov_steps_on_the_mean_nll(splits, steps_per_call):
    # Softmax regression: gradient x (p - onehot) / batch; Keras's Nesterov step is
    # v <- m v - lr g, w <- w + m v - lr g.
    config = Config(
        epochs=2, batch_size=8, learning_rate=0.3, decay=0.1, decay_epochs=3,
        steps_per_call=steps_per_call,
    )  # fmt: skip
    loop = Loop(linear_model(), make_optimizer("sgd"), splits, config)
    rows = [loop.train_epoch(epoch) for epoch in range(2)]

    x = splits.train.images.reshape(N, -1).astype("float64")
    x = np.concatenate([x, np.ones((N, 1))], axis=1)
    w, v = np.zeros((17, CLASSES)), np.zeros((17, CLASSES))
    for epoch in range(2):
        rate = 0.3 * 0.1 ** (epoch / 3)
        nll, right = [], []
        for indices in training_order(N, 8, 0, epoch):
            y = splits.train.labels[indices]
            logits = x[indices] @ w
            nll.append(-special.log_softmax(logits, -1)[np.arange(8), y].mean())
            right.append((logits.argmax(-1) == y).mean())
            p = special.softmax(logits, -1) - np.eye(CLASSES)[y]
            gradient = x[indices].T @ p / 8
            v = 0.9 * v - rate * gradient
            w = w + 0.9 * v - rate * gradient
        assert rows[epoch]["nll"] == pytest.approx(np.mean(nll), rel=1e-5)
        assert rows[epoch]["loss"] == rows[epoch]["nll"]
        assert rows[epoch]["accuracy"] == pytest.approx(np.mean(right))
        assert rows[epoch]["learning_rate"] == pytest.approx(rate)
    kernel, bias = (np.array(value) for value in loop.model.get_weights())
    np.testing.assert_allclose(kernel, w[:-1], atol=2e-6)
    np.testing.assert_allclose(bias, w[-1], atol=2e-6)


def test_calls_of_one_step_and_of_many_give_the_same_state(splits):
    states = []
    for steps_per_call in (1, 100):
        loop = bayesian_loop(splits, steps_per_call=steps_per_call)
        loop.train_epoch(0)
        states.append(loop.state())
    for x, y in zip(*states, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_evaluation_takes_each_example_once(splits):
    model = linear_model()
    model.layers[-1].kernel.assign(np.linspace(-1, 1, 48).reshape(16, 3))
    config = Config(epochs=1, eval_batch_size=7)
    loop = Loop(model, make_optimizer("sgd"), splits, config)
    images, labels = splits.validation.images, splits.validation.labels
    logits = images.reshape(23, 16) @ np.linspace(-1, 1, 48).reshape(16, 3)
    expected = -special.log_softmax(logits, -1)[np.arange(23), labels].mean()
    found = loop.evaluate("validation")
    assert found["nll"] == pytest.approx(expected, rel=1e-5)
    assert found["accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())


def test_validation_is_augmented_when_asked(splits):
    loop = bayesian_loop(splits)
    plain = [loop.evaluate("validation")["nll"] for _ in range(2)]
    augmented = [loop.evaluate("validation", augmented=True)["nll"] for _ in range(2)]
    assert plain[0] == plain[1]
    assert len({*plain, *augmented}) == 3


def test_images_are_scaled_in_the_step(splits):
    stored = datasets.from_arrays(
        *(
            (np.arange(n * 16).reshape(n, 4, 4, 1).astype("uint8"), labels)
            for n, labels in ((N, splits.train.labels), (23, splits.validation.labels))
        ),
        (np.zeros((8, 4, 4, 1), "uint8"), splits.test.labels),
        class_names=list("abc"),
        scale=1 / 16,
    )
    scaled = datasets.from_arrays(
        *(
            (stored.inputs(part.images), part.labels)
            for part in (stored.train, stored.validation, stored.test)
        ),
        class_names=list("abc"),
    )
    rows = []
    for data in (stored, scaled):
        loop = Loop(linear_model(), make_optimizer("sgd"), data, Config(1, 8))
        rows.append(loop.train_epoch(0)["nll"])
    assert rows[0] == pytest.approx(rows[1], rel=1e-6)


def test_weight_of_the_kl_acts_without_compiling_again(splits):
    # One step of plain SGD: rho moves by -lr (dNLL + weight dKL), where
    # dKL/drho = stddev^2 / prior_scale^2 - 1 for rho < 0.
    # All in one compiled loop, from the same state: only the weight differs.
    weights, moves = [], []
    config = {"epochs": 1, "batch_size": N}
    loop = Loop(bayesian_model(), keras.optimizers.SGD(1.0), splits, Config(**config))
    start = loop.state()
    layer = loop.model.get_layer("scale")
    before = np.array(layer.rho)
    for warmup in (3, 0):
        loop.set_state(start)
        loop.config = Config(**config, kl_warmup_epochs=warmup)
        weights.append(loop.train_epoch(0, learning_rate=1.0)["kl_weight"])
        moves.append(np.array(layer.rho) - before)
    np.testing.assert_allclose(weights, [1 / N / 4, 1 / N])
    expected = -(weights[1] - weights[0]) * (0.1**2 / 10**2 - 1)
    np.testing.assert_allclose(moves[1] - moves[0], expected, atol=2e-6)


def test_weight_of_the_kl_rises_over_the_warmup(splits):
    loop = bayesian_loop(splits, kl_warmup_epochs=2)
    weights = [row["kl_weight"] for row in fit(loop)]
    np.testing.assert_allclose(weights, np.array([1, 2, 3]) / 3 / N)
    assert float(loop.model.get_layer("scale").kl_weight_variable) == np.float32(1 / N)


def masked_splits(rng, scale=1.0):
    """Images that show their own labels."""

    def part(n):
        labels = rng.integers(0, 2, (n, 16, 16)).astype("uint8")
        return labels[..., None] * np.uint8(200), labels

    return datasets.from_arrays(part(12), part(6), part(3), scale=scale)


def test_pixels_count_as_examples(rng):
    splits = masked_splits(rng)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            keras.layers.Conv2D(2, 1),
            layers.StochasticScaleNorm(),
        ]
    )
    config = Config(1, 4, kl_factor=0.1, kl_warmup_epochs=1)
    loop = Loop(model, make_optimizer("sgd"), splits, config)
    row = loop.train_epoch(1)
    # Shekhovtsov & Flach: 0.1 KL / (images x pixels); the NLL is the mean over both.
    assert row["kl_weight"] == pytest.approx(0.1 / (12 * 16 * 16))
    assert loop.train_epoch(0)["kl_weight"] == pytest.approx(0.05 / (12 * 16 * 16))
    images, labels = splits.inputs(splits.train.images), splits.train.labels
    logits = keras.ops.convert_to_numpy(model(images)).astype("float64")
    logs = special.log_softmax(logits, -1)
    nll = -np.take_along_axis(logs, labels[..., None].astype(int), -1).mean()
    found = loop.evaluate("train")
    assert found["nll"] == pytest.approx(nll, rel=1e-5)
    assert found["accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())


def test_masks_move_with_their_images(rng):
    splits = masked_splits(rng, scale=1 / 200)
    model = keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Conv2D(2, 1)])
    # Class 1 where the image is above a half: right as long as both move alike.
    model.set_weights([np.array([[[[-1.0, 1.0]]]]), np.array([0.4, -0.4])])
    kind = datasets.Augmentation(3, flip=True, vertical_flip=True)
    augment = keras.Sequential(kind.layers(0))
    loop = Loop(model, make_optimizer("sgd"), splits, Config(1, 4), augment)
    assert loop.evaluate("validation", augmented=True)["accuracy"] == 1.0
    assert loop.train_epoch(0, learning_rate=1e-9)["accuracy"] == 1.0
    plain = loop.evaluate("validation")["nll"]
    # Zeros that come in are easier: something did move.
    assert abs(loop.evaluate("validation", augmented=True)["nll"] - plain) > 1e-4


def test_rows_have_further_figures(splits):
    config = Config(epochs=2, batch_size=8)
    loop = Loop(
        linear_model(),
        make_optimizer("sgd"),
        splits,
        config,
        figures=lambda model: {"weights": len(model.weights)},
    )
    assert [row["weights"] for row in fit(loop)] == [2, 2]


def test_loss_is_nll_plus_weighted_kl(splits):
    loop = bayesian_loop(splits, learning_rate=1e-9)
    row = loop.train_epoch(0)
    assert row["kl_weight"] == 1 / N
    assert row["loss"] == pytest.approx(row["nll"] + row["kl"] / N, rel=1e-5)
    # 5 channels of Normal(1, 0.1^2) to Normal(1, 10^2).
    assert row["kl"] == pytest.approx(5 * (np.log(100) + 0.5e-4 - 0.5), rel=1e-5)


def test_normalization_batch_has_the_loss_of_the_batch_only(splits):
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.BatchNormalization(center=False, scale=False),
            keras.layers.Dense(
                CLASSES, kernel_initializer=keras.initializers.HeNormal(1)
            ),
        ]
    )
    kernel = np.array(model.layers[-1].kernel, "float64")
    config = Config(epochs=1, batch_size=8, normalization_batch=30, learning_rate=1e-9)
    row = Loop(model, make_optimizer("sgd"), splits, config).train_epoch(0)
    order = training_order(N, 8, 0, 0)
    wide = with_normalization_batch(order, 30)
    np.testing.assert_array_equal(wide[:, :8], order)
    assert all(len(set(step)) == 30 for step in wide)
    images = splits.train.images.reshape(N, -1).astype("float64")
    losses = []
    for step in wide:
        x = images[step]
        logits = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3))[:8] @ kernel
        log_p = logits - special.logsumexp(logits, 1, keepdims=True)
        losses.append(-log_p[np.arange(8), splits.train.labels[step[:8]]].mean())
    assert row["nll"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_normalization_batch_is_differentiated_through_all_examples(splits):
    """By finite differences of the first kernel, which acts on all statistics."""

    def nll(shift, rate):
        model = keras.Sequential(
            [
                keras.Input((4, 4, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(
                    4, kernel_initializer=keras.initializers.HeNormal(2)
                ),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(
                    CLASSES, kernel_initializer=keras.initializers.HeNormal(1)
                ),
            ]
        )
        kernel = model.layers[1].kernel
        kernel.assign(np.array(kernel) + shift)
        before = np.array(kernel)
        config = Config(
            epochs=1, batch_size=16, normalization_batch=48, learning_rate=rate
        )
        loop = Loop(model, keras.optimizers.SGD(rate), splits, config)
        return loop.train_epoch(0)["nll"], (before - np.array(kernel)) / rate

    direction = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    gradient = nll(0.0, 1e-3)[1] / 3  # The mean of three steps, at one place nearly.
    step = 1e-2
    slope = (nll(step * direction, 1e-9)[0] - nll(-step * direction, 1e-9)[0]) / (
        2 * step
    )
    assert slope == pytest.approx((gradient * direction).sum(), rel=2e-2)


@pytest.mark.parametrize("size", [4, 49])
def test_normalization_batches_that_do_not_fit(splits, size):
    def loop():
        config = Config(epochs=1, batch_size=8, normalization_batch=size)
        return Loop(linear_model(), make_optimizer("sgd"), splits, config)

    with pytest.raises(ValueError, match="normalization_batch"):
        loop()


def test_projection_holds_after_training(splits):
    loop = bayesian_loop(splits, learning_rate=0.5)
    before = np.array(loop.model.get_layer("norm").layer.kernel)
    fit(loop)
    kernel = np.array(loop.model.get_layer("norm").layer.kernel, "float64")
    assert np.abs(kernel - before).max() > 0.01
    np.testing.assert_allclose(np.square(kernel).sum((0, 1, 2)), 1, atol=1e-6)


def test_adam_trains(splits):
    loop = Loop(linear_model(), make_optimizer("adam"), splits, Config(20, 10))
    history = fit(loop)
    assert history[-1]["nll"] < 0.8 * history[0]["nll"]


class Killed(BaseException):
    """Stands for the end of the process."""


def at_epoch_end(function):
    return keras.callbacks.LambdaCallback(on_epoch_end=function)


def test_resumed_run_equals_an_uninterrupted_one(splits, tmp_path):
    straight = bayesian_loop(splits, epochs=4)
    expected = fit(straight)

    def kill(epoch, logs):
        if epoch == 2:
            raise Killed

    # Killed in epoch 4, it has epochs 3 and 4 to do again.
    checkpoints = Checkpoints(tmp_path / "run", every=2)
    with pytest.raises(Killed):
        fit(bayesian_loop(splits, epochs=4), checkpoints, [at_epoch_end(kill)])
    assert len(checkpoints.latest().history) == 2
    # Another seed and other weights: all must come from the checkpoint.
    resumed = Loop(
        bayesian_model(seed=9),
        make_optimizer("sgd"),
        splits,
        straight.config,
        augment=datasets.RandomShift(1, seed=77),
    )
    history = fit(resumed, checkpoints)
    assert_equal_states(resumed.state(), straight.state())
    for row, other in zip(history, expected, strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}
    # Once over, it trains no further.
    assert fit(resumed, checkpoints) == history


def test_divergence_keeps_the_last_good_state(splits, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    loop = bayesian_loop(splits)
    good = {}

    def spoil(epoch, logs):
        if epoch == 1:
            good["state"] = loop.state()
            loop.config = Config(epochs=3, batch_size=8, learning_rate=1e30)

    with pytest.raises(DivergenceError, match=r"epoch 3.*epoch 2 is kept.*learning"):
        fit(loop, checkpoints, [at_epoch_end(spoil)])
    assert_equal_states(loop.state(), good["state"])
    assert_equal_states(checkpoints.latest().values, good["state"])
    assert len(checkpoints.latest().history) == 2


def test_divergence_in_the_first_epoch_restores_the_initial_weights(splits):
    loop = bayesian_loop(splits, learning_rate=1e30)
    start = loop.state()
    with pytest.raises(DivergenceError, match="initial weights is kept"):
        fit(loop)
    assert_equal_states(loop.state(), start)


def test_wrong_arguments_are_refused(splits):
    with pytest.raises(ValueError, match=r"at most 50.*batch_size=51"):
        bayesian_loop(splits, batch_size=51)
    for name, value in (
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", float("nan")),
        ("decay", 0.0),
        ("decay_epochs", 0),
        ("kl_warmup_epochs", -1),
        ("seed", -1),
        ("steps_per_call", 0),
    ):
        with pytest.raises(ValueError, match=f"`{name}`.*{name}="):
            Config(**{"epochs": 2, name: value})
    loop = bayesian_loop(splits)
    with pytest.raises(ValueError, match="another model"):
        loop.set_state(loop.state()[:-1])


def test_nan_in_the_data_is_refused_before_training(splits):
    splits.train.images[7, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"images\[7\]"):
        bayesian_loop(splits)


def seeded_loops(splits, count=3, **config):
    return [bayesian_loop(splits, k, seed=k, **config) for k in range(count)]


def assert_rows_agree(together, k, alone):
    row = member_row(together, k)
    assert row.keys() == alone.keys()
    for name in row.keys() - {"seconds"}:
        assert row[name] == pytest.approx(alone[name], rel=2e-5, abs=1e-6), name


@pytest.mark.parametrize("steps_per_call", [2, long(100)])
def test_networks_trained_at_once_are_those_trained_alone(splits, steps_per_call):
    config = {"kl_warmup_epochs": 1, "augment_validation": True}
    together = Loops(seeded_loops(splits, steps_per_call=steps_per_call, **config))
    history = fit(together)
    assert len({*history[-1]["nll"]}) == 3
    for k, loop in enumerate(seeded_loops(splits, **config)):
        for row, alone in zip(history, fit(loop), strict=True):
            assert_rows_agree(row, k, alone)
        for x, y in zip(together.loops[k].state(), loop.state(), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.jax
def test_loops_on_the_device_are_steps_one_by_one(splits, monkeypatch):
    import jax

    rows = []
    for device in ("cpu", "gpu"):
        # What runs there as one program; on a CPU steps are calls.
        monkeypatch.setattr(jax, "default_backend", lambda device=device: device)
        for make in (lambda: seeded_loops(splits, 1)[0], lambda: seeded_loops(splits)):
            loop = make()
            loop = Loops(loop) if isinstance(loop, list) else loop
            row = loop.train_epoch(0) | loop.evaluate("validation", True)
            rows.append(keras.tree.flatten(row))
    np.testing.assert_allclose(rows[0], rows[2], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(rows[1], rows[3], rtol=2e-5, atol=1e-6)


def test_networks_trained_at_once_resume(splits, tmp_path):
    def stop(epoch, logs):
        if epoch == 1:
            raise KeyboardInterrupt

    straight = fit(Loops(seeded_loops(splits)))
    with pytest.raises(KeyboardInterrupt):
        fit(
            Loops(seeded_loops(splits)),
            Checkpoints(tmp_path),
            [at_epoch_end(stop)],
        )
    resumed = fit(Loops(seeded_loops(splits)), Checkpoints(tmp_path))
    assert [len(row["nll"]) for row in resumed] == [3] * 3
    for a, b in zip(resumed, straight, strict=True):
        a.pop("seconds"), b.pop("seconds")
        assert a == b


def test_one_diverging_network_does_not_stop_the_others(splits):
    loops = seeded_loops(splits, 2)
    good = fit(seeded_loops(splits, 1)[0])
    loops[1].config = Config(epochs=3, batch_size=8, learning_rate=1e30, seed=1)
    history = fit(Loops(loops))
    for row, alone in zip(history, good, strict=True):
        assert_rows_agree(row, 0, alone)
    assert not np.isfinite(history[-1]["nll"][1])
    loops[0].config = loops[1].config
    with pytest.raises(DivergenceError, match="learning rate of 1e"):
        fit(Loops(loops))


def _kernel_after_training(splits, optimizer, policy="float32", **arguments):
    keras.config.set_dtype_policy(policy)
    model = linear_model()
    keras.config.set_dtype_policy("float32")
    loop = Loop(
        model, optimizer, splits, Config(2, 10, learning_rate=0.05), **arguments
    )
    history = fit(loop)
    return model.trainable_variables[0].numpy(), [row["nll"] for row in history]


def test_xla_computes_the_same(splits):
    expected, nlls = _kernel_after_training(splits, make_optimizer("sgd"))
    loop = functools.partial(backend.compiled_loop, xla=True)
    kernel, found = _kernel_after_training(
        splits, make_optimizer("sgd"), compiled_loop=loop
    )
    np.testing.assert_allclose(kernel, expected, atol=1e-6)
    np.testing.assert_allclose(found, nlls, rtol=1e-5)


def test_scaled_losses_give_the_gradients_of_the_loss(splits):
    """A scale that overflows halves itself, and its step is left out."""
    expected, nlls = _kernel_after_training(splits, make_optimizer("sgd"))
    scaled = keras.optimizers.LossScaleOptimizer(make_optimizer("sgd"), 2.0**10)
    kernel, found = _kernel_after_training(splits, scaled, "mixed_float16")
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(kernel, expected, atol=2e-3)
    np.testing.assert_allclose(found, nlls, rtol=1e-2)
    scaled = keras.optimizers.LossScaleOptimizer(make_optimizer("sgd"), 2.0**30)
    kernel, _ = _kernel_after_training(splits, scaled, "mixed_float16")
    assert np.isfinite(kernel).all()
    assert float(scaled.dynamic_scale) < 2.0**30
