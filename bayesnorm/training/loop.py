"""The training loop.

An epoch runs on the device: a source (`sources`) puts images and
labels there, all of them or block by block, and one compiled call takes many steps,
each of which picks its examples by index, augments them, and takes a step of the
optimizer. What differs between the backends stands in `bayesnorm.backend`.

The loss of a step is `mean NLL + sum(model.losses)`, in nats per example: the
KL of the posterior comes in through `model.losses`, weighted by a variable that
`bayesnorm.set_kl_weight` changes without compiling again.

What a run computes depends on its seed, its configuration and its data alone.
The order of the examples is a function of (seed, epoch), as is the rate of a step, and
all other randomness is in variables that a checkpoint holds, so a run stopped and
resumed ends with the figures of one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from bayesnorm import backend, datasets
from bayesnorm.layers import kl_divergence, set_kl_weight
from bayesnorm.layers.kl_weight import kl_weight_of_epoch
from bayesnorm.training.optimization import check_schedule, step_rates
from bayesnorm.training.parts import of_splits
from bayesnorm.types import Row, Schedule, Tensor

if TYPE_CHECKING:
    from bayesnorm.datasets import Splits
    from bayesnorm.training.checkpoints import Checkpoints
    from bayesnorm.training.simultaneous import Loops


# What is summed over the steps of an epoch.
TOTALS = ("loss", "nll", "accuracy")


def has_finite_weights(model: keras.Model) -> bool:
    """Whether all weights of a model are finite."""
    weights = (np.asarray(w.numpy(), "float64") for w in model.weights)
    return all(np.isfinite(w).all() for w in weights)


class DivergenceError(RuntimeError):
    """Training left the finite range."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run of the loop depends on, next to model, optimizer and data.

    Attributes:
        epochs: Number of epochs.
        batch_size: Examples of a step. An epoch takes `N // batch_size` steps: the
            remainder, other examples in each epoch, is left out of it, so that
            every step weighs its examples alike.
        normalization_batch: None, or the number of examples from `batch_size` that go
            through the network in a step, so that batch statistics are theirs, while
            the loss is that of the first `batch_size`; all of it is differentiated.
        learning_rate: Learning rate of the first step.
        schedule: How it changes, as for `optimization.step_rates`.
        decay: Factor by which an exponential schedule falls within `decay_epochs`.
        decay_epochs: Epochs of the schedule; None for `epochs`, so that a short run
            decays as far as a long one.
        decay_start: Part of `decay_epochs`, from 0 and below 1, at the first learning
            rate before a schedule by name begins: whole epochs, rounded down.
        kl_warmup_epochs: Epochs over which the weight of the KL rises to its last.
        kl_factor: Factor of the KL, whose weight is `kl_factor` over the number of
            training labels: `1 / N` for a classifier, and where each of N images has P
            labels `kl_factor / (N P)` (0.1 in Shekhovtsov & Flach).
        augment_validation: Whether validation images are augmented as well.
        seed: Seed of the order of the examples, from 0.
        steps_per_call: Steps of one compiled call; figures do not depend on it.
        eval_batch_size: Examples of a step of an evaluation.

    Raises:
        ValueError: If a number is out of range.
    """

    epochs: int
    batch_size: int = 32
    normalization_batch: int | None = None
    learning_rate: float = 0.01
    schedule: Schedule = "exponential"
    decay: float = 0.01
    decay_epochs: int | None = None
    decay_start: float = 0.0
    kl_warmup_epochs: int = 0
    kl_factor: float = 1.0
    augment_validation: bool = False
    seed: int = 0
    steps_per_call: int = 100
    eval_batch_size: int = 256

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        decay_epochs = 1 if self.decay_epochs is None else self.decay_epochs
        normalized = self.normalization_batch or self.batch_size
        for name, value, smallest in (
            ("epochs", self.epochs, 1),
            ("batch_size", self.batch_size, 1),
            ("normalization_batch", normalized, self.batch_size),
            ("decay_epochs", decay_epochs, 1),
            ("kl_warmup_epochs", self.kl_warmup_epochs, 0),
            ("seed", self.seed, 0),
            ("steps_per_call", self.steps_per_call, 1),
            ("eval_batch_size", self.eval_batch_size, 1),
        ):
            if value != int(value) or value < smallest:
                raise ValueError(
                    f"`{name}` must be an integer from {smallest}. Received: "
                    f"{name}={value!r}"
                )
        for name, value in (
            ("learning_rate", self.learning_rate),
            ("decay", self.decay),
            ("kl_factor", self.kl_factor),
        ):
            if not 0 < value < float("inf"):
                raise ValueError(
                    f"`{name}` must be a finite number above 0. Received: "
                    f"{name}={value!r}"
                )
        if not 0 <= self.decay_start < 1:
            raise ValueError(
                "`decay_start` must be a part of the schedule, from 0 and below 1. "
                f"Received: decay_start={self.decay_start!r}"
            )

    def learning_rates(self, epoch: int, steps: int) -> list[float]:
        """Returns the learning rates of an epoch's steps, a list.

        Args:
            epoch: Integer from 0.
            steps: Steps of an epoch.
        """
        over = self.decay_epochs or self.epochs
        start = int(self.decay_start * over)
        return step_rates(
            self.schedule, self.learning_rate, self.decay, over, epoch, steps, start
        )


class Loop:
    """Trains a model; `fit` runs it.

    Under `backend.data_parallel`, or a strategy of `tf.distribute`, in whose scope the
    model was made, the examples of a step are cut into a part for each replica; loss
    and gradients are those of all. Batch statistics are those of the part, as in
    Keras, with TensorFlow, and of the whole batch with JAX; moving averages are
    averaged over the replicas when an epoch ends.

    Args:
        model: A built Keras model, images `[batch, height, width, channels]` to
            logits `[batch, classes]` (or `[batch, ..., classes]` with labels
            `[batch, ...]`: NLL and accuracy are then means over the positions).
        optimizer: A Keras optimizer. One that has a schedule of its own keeps it;
            otherwise each step sets the learning rate. One that has `divergence()`, as
            samplers do, is asked why a run diverged.
        data: A `bayesnorm.datasets.Splits`, put on the device, or a dict of the sources
            (`sources.Source`) of `"train"` and `"validation"`, such as `data` of
            another loop. Images are scaled in the step.
        config: A `Config`.
        augment: A Keras layer on scaled images that is random when called with
            `training=True`, or None. With a label for each pixel it takes and gives a
            dict of `images` and `segmentation_masks`.
        compiled_loop: What compiles the loop over steps, a function as
            `bayesnorm.backend.compiled_loop`: the place of a strategy that spreads a
            step over several devices.
        figures: Function of the model to a dict of further numbers that an epoch's row
            has, called at its end; or None.

    Raises:
        ValueError: If the data do not pass `bayesnorm.datasets.validate` (NaN, wrong
            labels), hold fewer training examples than a batch, or those of validation
            are unlike those of training, or if replicas cannot share a batch evenly.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        data: Splits | Mapping[str, Any],
        config: Config,
        augment: keras.layers.Layer | None = None,
        compiled_loop: Callable[..., Any] = backend.compiled_loop,
        figures: Callable[[keras.Model], dict[str, float]] | None = None,
    ) -> None:
        if isinstance(data, datasets.Splits):
            data = of_splits(data)
        train = data["train"]
        train.check(config)
        train.check_alike(data["validation"])
        self.model = model
        self.optimizer = optimizer
        self.config = config = config_for_parts(config, backend.batch_parts())
        self.data = data
        self._augment = augment
        self._figures = figures or (lambda model: {})
        self._scale = train.scale
        self._dense = train.dense
        # The KL weighs 1 / N for a classifier; a pixel counts as an example.
        self._kl_examples = train.num_labels / config.kl_factor
        self.steps = train.num_examples // config.batch_size
        if augment is not None and not augment.built:
            shape = (None, *train.image_shape)
            masks = {"images": shape, "segmentation_masks": shape[:-1]}
            augment.build(masks if train.dense else shape)
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        self._sets_rate = isinstance(optimizer.learning_rate, keras.Variable)
        # From here on no layer counts examples to find a weight by itself.
        set_kl_weight(model, 0.0)
        augment_variables = [] if augment is None else augment.variables
        groups = (model.variables, augment_variables, optimizer.variables)
        unique = {id(v): v for group in groups for v in group}
        self.variables = list(unique.values())
        trainable = {id(v) for v in model.trainable_variables}
        self._others = [v for v in self.variables if id(v) not in trainable]
        self._average = backend.averaging(model.non_trainable_variables)
        self._train = compiled_loop(self.train_step, self.variables)
        self._evaluate = {
            augmented: compiled_loop(
                functools.partial(self.eval_step, augmented), self.variables
            )
            for augmented in (False, True)
        }

    def _batch(self, images, labels, indices, augmented):
        """Returns inputs and labels of the examples."""
        x = ops.cast(ops.take(images, indices, axis=0), "float32") * self._scale
        y = ops.take(labels, indices, axis=0)
        if not augmented or self._augment is None:
            return x, y
        if not self._dense:
            return self._augment(x, training=True), y
        both = {"images": x, "segmentation_masks": y}
        both = self._augment(both, training=True)
        return both["images"], both["segmentation_masks"]

    def train_step(
        self,
        i: Tensor,
        totals: Any,
        images: Tensor,
        labels: Tensor,
        order: Any,
        rates: Any,
    ) -> Any:
        """The body of the compiled loop over a block's steps."""
        indices = ops.take(order, i, axis=0)
        size = self.config.batch_size
        # Those of the loss, and those that only batch statistics see.
        own, others = map(backend.own_rows, (indices[:size], indices[size:]))
        indices, size = ops.concatenate([own, others]), own.shape[0]
        x, y = self._batch(images, labels, indices, augmented=True)
        y = y[:size]
        # Optimizers sum the gradients of the replicas.
        share = 1.0 / backend.replicas()

        def loss():
            logits = self.model(x, training=True)[:size]
            nll, correct = _nll_and_correct(logits, y)
            nll, correct = share * ops.mean(nll), share * ops.mean(correct)
            total = nll + share * sum(self.model.losses)
            # In half precision small gradients would vanish.
            return self.optimizer.scale_loss(total), (total, nll, correct)

        trainable = self.model.trainable_variables
        _, figures, gradients = backend.value_and_gradients(
            loss, trainable, self._others
        )
        if self._sets_rate:
            self.optimizer.learning_rate.assign(ops.take(rates, i, axis=0))
        backend.apply_gradients(self.optimizer, gradients, trainable)
        return _added(totals, list(figures))

    def eval_step(
        self,
        augmented: bool,
        i: Tensor,
        totals: Any,
        images: Tensor,
        labels: Tensor,
        order: Any,
        weights: Any,
    ) -> Any:
        """The body of the compiled loop over an evaluation's steps."""
        indices = backend.own_rows(ops.take(order, i, axis=0))
        weight = backend.own_rows(ops.take(weights, i, axis=0))
        x, y = self._batch(images, labels, indices, augmented)
        terms = _nll_and_correct(self.model(x, training=False), y)
        return _added(totals, [ops.sum(weight * value) for value in terms])

    def begin_epoch(
        self, epoch: int, learning_rate: float | None = None
    ) -> tuple[np.ndarray, Row]:
        """Sets the weight of the KL.

        Args:
            epoch: Integer from 0.
            learning_rate: Number; None for the configuration's rates of this epoch.

        Returns:
            `(rates, row)`: the learning rates of the steps, `[steps]`, and a dict of
            `learning_rate`, that of the first step, and `kl_weight`.

        Raises:
            ValueError: If a rate is given and the optimizer has its own schedule.
        """
        config = self.config
        if self._sets_rate:
            rates = config.learning_rates(epoch, self.steps)
        else:
            rates = [float(self.optimizer.learning_rate)] * self.steps
        if learning_rate is not None:
            if not self._sets_rate:
                raise ValueError(
                    "The optimizer has a learning rate schedule of its own, which goes "
                    "before any other: give one with a number to search for it. "
                    f"Received: learning_rate={learning_rate!r}"
                )
            rates = [learning_rate] * self.steps
        weight = kl_weight_of_epoch(epoch, self._kl_examples, config.kl_warmup_epochs)
        set_kl_weight(self.model, weight)
        row = {"learning_rate": rates[0], "kl_weight": weight}
        return np.asarray(rates, "float32"), row

    def end_epoch(self, row: Row, totals: Any) -> Row:
        """Returns the row of an epoch: that of its beginning and what came of it."""
        self._average()
        means = (float(total) / self.steps for total in totals)
        kl = float(ops.convert_to_numpy(kl_divergence(self.model)))
        row = {**row, **dict(zip(TOTALS, means, strict=True)), "kl": kl}
        return row | self._figures(self.model)

    def train_epoch(
        self,
        epoch: int,
        learning_rate: float | None = None,
        callbacks: keras.callbacks.CallbackList | None = None,
    ) -> Row:
        """Trains for an epoch.

        Args:
            epoch: As for `begin_epoch`.
            learning_rate: As for `begin_epoch`.
            callbacks: A `keras.callbacks.CallbackList`, whose hooks of a batch are
                called around each compiled call, with the means so far; or None.

        Returns:
            Dict of `learning_rate`, `kl_weight`, the means over the steps of `loss` and
            `nll` (nats per example, or pixel), of `accuracy`, and `kl` (nats) at the
            end of the epoch, with the further figures of then.
        """
        rates, row = self.begin_epoch(epoch, learning_rate)

        def own(block, done):
            # As long as the order, whose last steps may be none.
            return block.order, np.resize(rates[done:], len(block.order))

        totals = run_steps(
            self._train,
            self.data["train"].training(self.config, epoch),
            own,
            np.zeros(len(TOTALS), "float32"),
            self.config.steps_per_call,
            callbacks,
        )
        return self.end_epoch(row, totals)

    def evaluate(self, part: str = "validation", augmented: bool = False) -> Row:
        """Evaluates one pass, at the posterior's means.

        Args:
            part: `"train"` or `"validation"`.
            augmented: Whether the images are augmented.

        Returns:
            Dict of `nll` (nats per example) and `accuracy`.
        """
        count = 0

        def own(block, done):
            nonlocal count
            count += int(block.weights.sum())
            return block.order, block.weights

        nll, correct = run_steps(
            self._evaluate[bool(augmented)],
            self.data[part].evaluation(self.config),
            own,
            np.zeros(2, "float32"),
            self.config.steps_per_call,
        )
        return {"nll": float(nll) / count, "accuracy": float(correct) / count}

    def state(self) -> list[np.ndarray]:
        """Returns the values of all variables, as a list of arrays."""
        # Copies: on a CPU JAX's arrays share the buffers that a step donates.
        return [np.array(v.numpy()) for v in self.variables]

    def set_state(self, values: list[np.ndarray]) -> None:
        """Sets all variables.

        Args:
            values: What `state` returned, of a model of the same build.

        Raises:
            ValueError: If the number or a shape of the values differs.
        """
        expected = [tuple(v.shape) for v in self.variables]
        received = [np.shape(value) for value in values]
        if expected != received:
            raise ValueError(
                "The state belongs to another model, optimizer or backend: expected "
                f"{len(expected)} arrays of shapes {expected}. Received: "
                f"{len(received)} arrays of shapes {received}"
            )
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)

    def is_finite(self, row: Row) -> bool:
        """Whether all figures of the row of an epoch and all weights are finite."""
        if not all(map(math.isfinite, row.values())):
            return False
        return has_finite_weights(self.model)


def run_steps(
    call: Callable[..., Any],
    blocks: Any,
    own: Callable[..., Any],
    totals: Any,
    steps_per_call: int,
    callbacks: keras.callbacks.CallbackList | None = None,
) -> np.ndarray:
    """Runs the steps of blocks, some per call, while any of the first totals is finite.

    Args:
        call: Function `(start, stop, totals, images, labels, *own) -> totals`, totals a
            list of tensors.
        blocks: Generator of `sources.Block`s.
        own: Function `(block, done)` of a block and the steps before it to the other
            arrays that its steps take.
        totals: Array `[totals, ...]`, zeros.
        steps_per_call: Number of steps of a call.
        callbacks: A `keras.callbacks.CallbackList`, or None.

    Returns:
        The totals, an array.
    """
    totals, done = [ops.convert_to_tensor(total) for total in totals], 0
    with contextlib.closing(blocks):
        for block in blocks:
            tensors = (block.images, block.labels, *own(block, done))
            tensors = backend.replicated(list(map(ops.convert_to_tensor, tensors)))
            for start in range(0, block.steps, steps_per_call):
                stop = min(start + steps_per_call, block.steps)
                if callbacks is not None:
                    callbacks.on_train_batch_begin(done + start)
                totals = call(start, stop, totals, *tensors)
                # Waits for the device: a bar that ran ahead would mislead.
                values = np.stack([ops.convert_to_numpy(total) for total in totals])
                if not np.isfinite(values[0]).any():
                    return values
                if callbacks is not None:
                    means = (values.astype("float64") / (done + stop)).tolist()
                    logs = dict(zip(TOTALS, means, strict=True))
                    callbacks.on_train_batch_end(done + stop - 1, logs)
            done += block.steps
    return values


def config_for_parts(config: Config, parts: int) -> Config:
    """Returns a `Config` of which every batch can be cut into parts of one size."""
    for name in ("batch_size", "normalization_batch"):
        size = getattr(config, name)
        if size is not None and size % parts:
            raise ValueError(
                f"`{name}` must be a multiple of {parts}, the number of replicas, each "
                f"of which takes as many examples of a step. Received: {name}={size}"
            )
    size = -(-config.eval_batch_size // parts) * parts
    return dataclasses.replace(config, eval_batch_size=size)


def _added(totals, values):
    """Returns totals with what a step has of them, in all replicas together."""
    values = backend.sum_over_replicas(values)
    return [t + v for t, v in zip(totals, values, strict=True)]


def _nll_and_correct(logits, labels):
    """Returns NLL (nats) and correctness per example, `[batch]` each, float32."""
    # In half precision the softmax of large logits loses what the NLL measures.
    logits = ops.cast(logits, "float32")
    nll = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    correct = ops.cast(ops.equal(ops.argmax(logits, -1), labels), "float32")
    batch = ops.shape(labels)[0]
    return tuple(
        ops.mean(ops.reshape(value, (batch, -1)), axis=1) for value in (nll, correct)
    )


def fit(
    loop: Loop | Loops,
    checkpoints: Checkpoints | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> list[Row]:
    """Trains for the configured epochs, from the last checkpoint if there is one.

    Args:
        loop: A `Loop`, or several as `simultaneous.Loops`.
        checkpoints: A `checkpoints.Checkpoints`, or None to keep none.
        callbacks: List of `keras.callbacks.Callback`s, such as a
            `progress.Progress`. They are called as by Keras's `fit`, the hooks
            of a batch once for each compiled call; `logs` of an epoch are its entry of
            the history, and `params["history"]` is the history so far, of a run gone on
            with also what lies behind. An epoch's checkpoint is written after its
            `on_epoch_end` and holds what that did to the model, but no state of the
            callbacks. One that sets `stop_training` of the model ends the run, which
            goes on if begun again. Of several loops there is no model. The learning
            rate is the schedule's: what a callback assigns is overwritten.

    Returns:
        The history, a list of one dict per epoch: those of `Loop.train_epoch`,
        `val_nll` and `val_accuracy` of one pass on the validation part, `epoch`
        counted from 1, and `seconds`. Of `Loops` the figures are lists.

    Raises:
        DivergenceError: If loss or weights left the finite range (of `Loops`: of all of
            them). The model then holds the last good checkpoint (the initial weights if
            there is none).
    """
    config = loop.config
    model = getattr(loop, "model", None)
    good, good_epoch = loop.state(), 0
    history = []
    saved = checkpoints.latest() if checkpoints is not None else None
    if saved is not None:
        good, history = saved.values, saved.history
        good_epoch = len(history)
        loop.set_state(good)
    callbacks = keras.callbacks.CallbackList(
        list(callbacks),
        model=model,
        epochs=config.epochs,
        steps=loop.steps,
        history=history,
    )
    if model is not None:
        model.stop_training = False
    callbacks.on_train_begin()
    for epoch in range(len(history), config.epochs):
        start = time.perf_counter()
        callbacks.on_epoch_begin(epoch)
        row = {"epoch": epoch + 1, **loop.train_epoch(epoch, callbacks=callbacks)}
        validation = loop.evaluate("validation", config.augment_validation)
        row |= {f"val_{name}": value for name, value in validation.items()}
        row["seconds"] = time.perf_counter() - start
        if not loop.is_finite(row):
            why = getattr(getattr(loop, "optimizer", None), "divergence", str)()
            loop.set_state(good)
            kept = f"epoch {good_epoch}" if good_epoch else "the initial weights"
            raise DivergenceError(
                f"Training diverged in epoch {epoch + 1}: nll {np.mean(row['nll']):.4g}"
                f", kl {np.mean(row['kl']):.4g}, at a learning rate of "
                f"{np.mean(row['learning_rate']):.4g}. "
                f"The state of {kept} is kept. "
                + (
                    why
                    or "Try a lower learning rate, more epochs of KL warm-up or a "
                    "smaller initial stddev"
                    + (", in another working directory." if good_epoch else ".")
                )
            )
        history.append(row)
        callbacks.on_epoch_end(epoch, row)
        last = epoch + 1 == config.epochs or getattr(model, "stop_training", False)
        if checkpoints is None or last or checkpoints.is_due(epoch + 1):
            good, good_epoch = loop.state(), epoch + 1
            if checkpoints is not None:
                checkpoints.save(good, history)
        if last:
            break
    callbacks.on_train_end()
    return history
