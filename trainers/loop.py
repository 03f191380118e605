"""The training loop of all binaries.

An epoch runs on the device: images and labels lie there, and one compiled call
takes many steps, each of which picks its examples by index, augments them, and
takes a step of the optimizer. What differs between the backends stands in
`bayesnorm.backend`.

The loss of a step is `mean NLL + sum(model.losses)`, in nats per example: the
KL of the posterior comes in through `model.losses`, weighted by a variable that
`bayesnorm.set_kl_weight` changes without compiling again.

What a run computes depends on its seed, its configuration and its data alone.
The order of the examples is a function of (seed, epoch), all other randomness is
in variables that a checkpoint holds, so a run stopped and resumed ends with the
figures of one that was not.
"""

import dataclasses
import math
import time

import keras
import numpy as np
from keras import ops

from bayesnorm import backend, datasets
from bayesnorm.arguments import check_choice
from bayesnorm.layers import kl_divergence, set_kl_weight
from bayesnorm.layers.kl_weight import kl_weight_of_epoch


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
        learning_rate: Learning rate of the first epoch.
        schedule: `"exponential"` or `"linear"`.
        decay: Factor by which the learning rate falls within `decay_epochs`:
            `learning_rate * decay ** (epoch / decay_epochs)`, constant in an epoch. A
            linear one falls to 0: `learning_rate * (1 - epoch / decay_epochs)`.
        decay_epochs: None for `epochs`, so that a short run decays as far as a
            long one.
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
    schedule: str = "exponential"
    decay: float = 0.01
    decay_epochs: int | None = None
    kl_warmup_epochs: int = 0
    kl_factor: float = 1.0
    augment_validation: bool = False
    seed: int = 0
    steps_per_call: int = 100
    eval_batch_size: int = 256

    def __post_init__(self):
        check_choice("schedule", self.schedule, ("exponential", "linear"))
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

    def learning_rate_of_epoch(self, epoch):
        """Returns the learning rate of an epoch, counted from 0."""
        over = self.decay_epochs or self.epochs
        if self.schedule == "linear":
            return self.learning_rate * max(0.0, 1.0 - epoch / over)
        return self.learning_rate * self.decay ** (epoch / over)


def make_optimizer(name, learning_rate=0.01):
    """Returns `"sgd"` (Nesterov, momentum 0.9) or `"adam"`, unbuilt."""
    if name == "sgd":
        return keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True)
    if name == "adam":
        return keras.optimizers.Adam(learning_rate)
    raise ValueError(f"`name` must be 'sgd' or 'adam'. Received: {name!r}")


def training_order(num_examples, batch_size, seed, epoch):
    """Returns the examples of an epoch's steps, `[N // batch_size, batch_size]`.

    Args:
        num_examples: Integer N.
        batch_size: Integer, at most N.
        seed: Integer from 0.
        epoch: Integer from 0.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    steps = num_examples // batch_size
    order = generator.permutation(num_examples)[: steps * batch_size]
    return order.reshape(steps, batch_size).astype("int32")


def with_normalization_batch(order, size):
    """Appends to each step the examples that follow it in the epoch, up to `size`.

    Args:
        order: Integers `[steps, batch_size]`, as of `training_order`.
        size: Integer, at most the number of entries of `order`.

    Returns:
        Integers `[steps, size]`: no example twice in a step.
    """
    steps, batch_size = order.shape
    places = batch_size * np.arange(steps)[:, None] + np.arange(size)
    return order.reshape(-1)[places % order.size]


class Loop:
    """Trains a model on data held in memory; `fit` runs it.

    Args:
        model: A built Keras model, images `[batch, height, width, channels]` to
            logits `[batch, classes]` (or `[batch, ..., classes]` with labels
            `[batch, ...]`: NLL and accuracy are then means over the positions).
        optimizer: A Keras optimizer.
        splits: A `bayesnorm.datasets.Splits`; its images are scaled in the step.
        config: A `Config`.
        augment: A Keras layer on scaled images that is random when called with
            `training=True`, or None. With a label for each pixel it takes and gives a
            dict of `images` and `segmentation_masks`.

    Raises:
        ValueError: If the data do not pass `bayesnorm.datasets.validate` (NaN, wrong
            labels), or hold fewer training examples than a batch.
    """

    def __init__(self, model, optimizer, splits, config, augment=None):
        datasets.validate(splits)
        self.num_examples = len(splits.train)
        if config.batch_size > self.num_examples:
            raise ValueError(
                f"`batch_size` must be at most {self.num_examples}, the number of "
                f"training examples. Received: batch_size={config.batch_size}"
            )
        used = self.num_examples // config.batch_size * config.batch_size
        if (config.normalization_batch or 0) > used:
            raise ValueError(
                f"`normalization_batch` must be at most {used}, the training examples "
                f"of an epoch. Received: normalization_batch="
                f"{config.normalization_batch}"
            )
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self._augment = augment
        self._scale = splits.scale
        self._dense = splits.dense
        # The KL weighs 1 / N for a classifier; a pixel counts as an example.
        self._kl_examples = splits.train.labels.size / config.kl_factor
        self._data = {
            part: (
                ops.convert_to_tensor(getattr(splits, part).images),
                ops.convert_to_tensor(getattr(splits, part).labels.astype("int32")),
            )
            for part in ("train", "validation")
        }
        if augment is not None and not augment.built:
            shape = (None, *splits.image_shape)
            masks = {"images": shape, "segmentation_masks": shape[:-1]}
            augment.build(masks if splits.dense else shape)
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        # From here on no layer counts examples to find a weight by itself.
        set_kl_weight(model, 0.0)
        augment_variables = [] if augment is None else augment.variables
        groups = (model.variables, augment_variables, optimizer.variables)
        unique = {id(v): v for group in groups for v in group}
        self.variables = list(unique.values())
        trainable = {id(v) for v in model.trainable_variables}
        self._others = [v for v in self.variables if id(v) not in trainable]
        self._train = backend.compiled_loop(self._train_step, self.variables)
        self._evaluate = {
            augmented: backend.compiled_loop(
                lambda *args, augmented=augmented: self._eval_step(augmented, *args),
                self.variables,
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

    def _train_step(self, i, totals, images, labels, order):
        indices = ops.take(order, i, axis=0)
        x, y = self._batch(images, labels, indices, augmented=True)
        size = self.config.batch_size
        y = y[:size]

        def loss():
            logits = self.model(x, training=True)[:size]
            nll, correct = _nll_and_correct(logits, y)
            nll, correct = ops.mean(nll), ops.mean(correct)
            return nll + sum(self.model.losses), (nll, correct)

        trainable = self.model.trainable_variables
        loss, (nll, correct), gradients = backend.value_and_gradients(
            loss, trainable, self._others
        )
        self.optimizer.apply(gradients, trainable)
        return [t + v for t, v in zip(totals, (loss, nll, correct), strict=True)]

    def _eval_step(self, augmented, i, totals, images, labels, order, weights):
        indices = ops.take(order, i, axis=0)
        x, y = self._batch(images, labels, indices, augmented)
        weight = ops.take(weights, i, axis=0)
        terms = _nll_and_correct(self.model(x, training=False), y)
        return [t + ops.sum(weight * v) for t, v in zip(totals, terms, strict=True)]

    def _run(self, call, count, tensors, steps, progress):
        """Runs the steps, some per call, while the first total is finite.

        Returns:
            The totals as floats.
        """
        totals = [ops.zeros((), "float32") for _ in range(count)]
        for start in range(0, steps, self.config.steps_per_call):
            stop = min(start + self.config.steps_per_call, steps)
            totals = call(start, stop, totals, *tensors)
            # Waits for the device: a bar that ran ahead would mislead.
            if not math.isfinite(float(ops.convert_to_numpy(totals[0]))):
                break
            if progress is not None:
                progress(stop, steps)
        return [float(ops.convert_to_numpy(total)) for total in totals]

    def train_epoch(self, epoch, learning_rate=None, progress=None):
        """Trains for an epoch.

        Args:
            epoch: Integer from 0.
            learning_rate: Number; None for the configuration's of this epoch.
            progress: Function `(step, steps)` called after each compiled call.

        Returns:
            Dict of `learning_rate`, `kl_weight`, the means over the steps of `loss` and
            `nll` (nats per example, or pixel), of `accuracy`, and `kl` (nats) at the
            end of the epoch.
        """
        config = self.config
        if learning_rate is None:
            learning_rate = config.learning_rate_of_epoch(epoch)
        weight = kl_weight_of_epoch(epoch, self._kl_examples, config.kl_warmup_epochs)
        self.optimizer.learning_rate.assign(learning_rate)
        set_kl_weight(self.model, weight)
        order = training_order(self.num_examples, config.batch_size, config.seed, epoch)
        steps = len(order)
        if config.normalization_batch:
            order = with_normalization_batch(order, config.normalization_batch)
        tensors = (*self._data["train"], ops.convert_to_tensor(order))
        totals = self._run(self._train, 3, tensors, steps, progress)
        loss, nll, accuracy = (total / steps for total in totals)
        return {
            "learning_rate": learning_rate,
            "kl_weight": weight,
            "loss": loss,
            "nll": nll,
            "accuracy": accuracy,
            "kl": float(ops.convert_to_numpy(kl_divergence(self.model))),
        }

    def evaluate(self, part="validation", augmented=False):
        """Evaluates one pass, at the posterior's means.

        Args:
            part: `"train"` or `"validation"`.
            augmented: Whether the images are augmented.

        Returns:
            Dict of `nll` (nats per example) and `accuracy`.
        """
        images, labels = self._data[part]
        count, size = int(images.shape[0]), self.config.eval_batch_size
        steps = -(-count // size)
        order = np.zeros(steps * size, "int32")
        order[:count] = np.arange(count)
        weights = (np.arange(steps * size) < count).astype("float32")
        tensors = (
            images,
            labels,
            ops.convert_to_tensor(order.reshape(steps, size)),
            ops.convert_to_tensor(weights.reshape(steps, size)),
        )
        call = self._evaluate[bool(augmented)]
        nll, correct = self._run(call, 2, tensors, steps, None)
        return {"nll": nll / count, "accuracy": correct / count}

    def state(self):
        """Returns the values of all variables, as a list of arrays."""
        # Copies: on a CPU JAX's arrays share the buffers that a step donates.
        return [np.array(ops.convert_to_numpy(v.value)) for v in self.variables]

    def set_state(self, values):
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

    def is_finite(self):
        """Whether all weights are finite."""
        weights = (ops.convert_to_numpy(w.value) for w in self.model.weights)
        return all(np.isfinite(np.asarray(w, "float64")).all() for w in weights)


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


def fit(loop, checkpoints=None, progress=None, on_epoch_end=None):
    """Trains for the configured epochs, from the last checkpoint if there is one.

    Args:
        loop: A `Loop`.
        checkpoints: A `trainers.checkpoints.Checkpoints`, or None to keep none.
        progress: A `trainers.progress.Progress`, or None to be silent.
        on_epoch_end: Function of the history so far, or None.

    Returns:
        The history, a list of one dict per epoch: those of `Loop.train_epoch`,
        `val_nll` and `val_accuracy` of one pass on the validation part, `epoch`
        counted from 1, and `seconds`.

    Raises:
        DivergenceError: If loss or weights left the finite range. The model then holds
            the last good checkpoint (the initial weights if there is none).
    """
    config = loop.config
    good, good_epoch = loop.state(), 0
    history = []
    saved = checkpoints.latest() if checkpoints is not None else None
    if saved is not None:
        good, history = saved.values, saved.history
        good_epoch = len(history)
        loop.set_state(good)
        if progress is not None:
            progress.note(f"resuming after epoch {len(history)} of {config.epochs}")
    for epoch in range(len(history), config.epochs):
        start = time.perf_counter()
        steps = None if progress is None else progress.steps(epoch + 1, config.epochs)
        row = {"epoch": epoch + 1, **loop.train_epoch(epoch, progress=steps)}
        validation = loop.evaluate("validation", config.augment_validation)
        row |= {f"val_{name}": value for name, value in validation.items()}
        row["seconds"] = time.perf_counter() - start
        if not (all(map(math.isfinite, row.values())) and loop.is_finite()):
            loop.set_state(good)
            kept = f"epoch {good_epoch}" if good_epoch else "the initial weights"
            raise DivergenceError(
                f"Training diverged in epoch {epoch + 1}: nll {row['nll']:.4g}, kl "
                f"{row['kl']:.4g}, at a learning rate of {row['learning_rate']:.4g}. "
                f"The state of {kept} is kept. Try a lower learning rate, more "
                "epochs of KL warm-up or a smaller initial stddev"
                + (", in another working directory." if good_epoch else ".")
            )
        history.append(row)
        last = epoch + 1 == config.epochs
        if checkpoints is None or last or checkpoints.is_due(epoch + 1):
            good, good_epoch = loop.state(), epoch + 1
            if checkpoints is not None:
                checkpoints.save(good, history)
        if progress is not None:
            progress.epoch(row, config.epochs)
        if on_epoch_end is not None:
            on_epoch_end(history)
    return history
