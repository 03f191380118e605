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
import functools
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
        data: `data` of another loop on the same splits, which is then not put on the
            device once more; or None.

    Raises:
        ValueError: If the data do not pass `bayesnorm.datasets.validate` (NaN, wrong
            labels), or hold fewer training examples than a batch.
    """

    def __init__(self, model, optimizer, splits, config, augment=None, data=None):
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
        self.data = data or {
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
        self._train = backend.compiled_loop(self.train_step, self.variables)
        self._evaluate = {
            augmented: backend.compiled_loop(
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

    def train_step(self, i, totals, images, labels, order):
        """The body of the compiled loop over an epoch's steps."""
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

    def eval_step(self, augmented, i, totals, images, labels, order, weights):
        """The body of the compiled loop over an evaluation's steps."""
        indices = ops.take(order, i, axis=0)
        x, y = self._batch(images, labels, indices, augmented)
        weight = ops.take(weights, i, axis=0)
        terms = _nll_and_correct(self.model(x, training=False), y)
        return [t + ops.sum(weight * v) for t, v in zip(totals, terms, strict=True)]

    def begin_epoch(self, epoch, learning_rate=None):
        """Sets learning rate and weight of the KL.

        Args:
            epoch: Integer from 0.
            learning_rate: Number; None for the configuration's of this epoch.

        Returns:
            `(order, row)`: the examples of the steps, `[steps, examples]`, and a dict
            of `learning_rate` and `kl_weight`.
        """
        config = self.config
        if learning_rate is None:
            learning_rate = config.learning_rate_of_epoch(epoch)
        weight = kl_weight_of_epoch(epoch, self._kl_examples, config.kl_warmup_epochs)
        self.optimizer.learning_rate.assign(learning_rate)
        set_kl_weight(self.model, weight)
        order = training_order(self.num_examples, config.batch_size, config.seed, epoch)
        if config.normalization_batch:
            order = with_normalization_batch(order, config.normalization_batch)
        return order, {"learning_rate": learning_rate, "kl_weight": weight}

    def end_epoch(self, row, totals, steps):
        """Returns the row of an epoch: that of its beginning and what came of it."""
        loss, nll, accuracy = (float(total) / steps for total in totals)
        kl = float(ops.convert_to_numpy(kl_divergence(self.model)))
        return {**row, "loss": loss, "nll": nll, "accuracy": accuracy, "kl": kl}

    def train_epoch(self, epoch, learning_rate=None, progress=None):
        """Trains for an epoch.

        Args:
            epoch: As for `begin_epoch`.
            learning_rate: As for `begin_epoch`.
            progress: Function `(step, steps)` called after each compiled call.

        Returns:
            Dict of `learning_rate`, `kl_weight`, the means over the steps of `loss` and
            `nll` (nats per example, or pixel), of `accuracy`, and `kl` (nats) at the
            end of the epoch.
        """
        order, row = self.begin_epoch(epoch, learning_rate)
        tensors = (*self.data["train"], ops.convert_to_tensor(order))
        totals = _run(
            lambda start, stop, totals: self._train(start, stop, totals, *tensors),
            np.zeros(3, "float32"),
            len(order),
            self.config.steps_per_call,
            progress,
        )
        return self.end_epoch(row, totals, len(order))

    def evaluation_order(self, part):
        """Returns the examples of the steps of an evaluation, and their weights.

        Args:
            part: `"train"` or `"validation"`.

        Returns:
            Two arrays `[steps, eval_batch_size]`; the last step is filled up by
            examples of weight 0.
        """
        count, size = int(self.data[part][0].shape[0]), self.config.eval_batch_size
        places = np.arange(-(-count // size) * size).reshape(-1, size)
        inside = places < count
        return np.where(inside, places, 0).astype("int32"), inside.astype("float32")

    def evaluate(self, part="validation", augmented=False):
        """Evaluates one pass, at the posterior's means.

        Args:
            part: `"train"` or `"validation"`.
            augmented: Whether the images are augmented.

        Returns:
            Dict of `nll` (nats per example) and `accuracy`.
        """
        order, weights = map(ops.convert_to_tensor, self.evaluation_order(part))
        images, labels = self.data[part]
        call = self._evaluate[bool(augmented)]
        nll, correct = _run(
            lambda *args: call(*args, images, labels, order, weights),
            np.zeros(2, "float32"),
            len(order),
            self.config.steps_per_call,
        )
        count = len(labels)
        return {"nll": float(nll) / count, "accuracy": float(correct) / count}

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

    def is_finite(self, row):
        """Whether all figures of the row of an epoch and all weights are finite."""
        if not all(map(math.isfinite, row.values())):
            return False
        weights = (ops.convert_to_numpy(w.value) for w in self.model.weights)
        return all(np.isfinite(np.asarray(w, "float64")).all() for w in weights)


class Loops:
    """Loops of networks that differ in their seeds, trained at the same time.

    With JAX one program trains them all, vectorized over the networks: where one of
    them leaves an accelerator idle, several take little longer. What each computes is
    what it computes alone, to rounding. With TensorFlow they take turns.

    Figures are lists, an entry for each loop. A network that leaves the finite range
    does not stop the others: its figures are NaN from there on.

    Args:
        loops: List of `Loop`s, of one architecture, data set and configuration but for
            seeds and learning rates.
    """

    def __init__(self, loops):
        self.loops = list(loops)
        self.config = self.loops[0].config
        variables = [loop.variables for loop in self.loops]
        self._train = backend.compiled_loops(
            [loop.train_step for loop in self.loops], variables
        )
        self._evaluate = {
            augmented: backend.compiled_loops(
                [functools.partial(loop.eval_step, augmented) for loop in self.loops],
                variables,
            )
            for augmented in (False, True)
        }

    def train_epoch(self, epoch, progress=None):
        """Trains all for an epoch; returns dict of lists, as `Loop.train_epoch`."""
        begun = [loop.begin_epoch(epoch) for loop in self.loops]
        orders = [ops.convert_to_tensor(np.stack([order for order, _ in begun]))]
        steps = int(orders[0].shape[1])
        data = list(self.loops[0].data["train"])
        totals = _run(
            lambda *args: self._train(*args, data, orders),
            np.zeros((3, len(self.loops)), "float32"),
            steps,
            self.config.steps_per_call,
            progress,
        )
        rows = [
            loop.end_epoch(row, own, steps)
            for loop, (_, row), own in zip(self.loops, begun, totals.T, strict=True)
        ]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def evaluate(self, part="validation", augmented=False):
        """Evaluates all; returns dict of lists, as `Loop.evaluate`."""
        first = self.loops[0]
        order, weights = map(ops.convert_to_tensor, first.evaluation_order(part))
        data = [*first.data[part], order, weights]
        call = self._evaluate[bool(augmented)]
        totals = _run(
            lambda *args: call(*args, data, []),
            np.zeros((2, len(self.loops)), "float32"),
            len(order),
            self.config.steps_per_call,
        )
        nll, correct = totals.astype("float64") / len(data[1])
        return {"nll": nll.tolist(), "accuracy": correct.tolist()}

    def state(self):
        """Returns the values of all variables of all loops, as a list of arrays."""
        return [value for loop in self.loops for value in loop.state()]

    def set_state(self, values):
        """Sets all variables of all loops, as `Loop.set_state`."""
        count = len(values) // len(self.loops)
        for k, loop in enumerate(self.loops):
            loop.set_state(values[k * count : (k + 1) * count])

    def is_finite(self, row):
        """Whether any of the networks is in the finite range."""
        return any(
            loop.is_finite(member_row(row, k)) for k, loop in enumerate(self.loops)
        )


def member_row(row, number):
    """Returns the row of one network out of that of `Loops`."""
    return {k: v[number] if isinstance(v, list) else v for k, v in row.items()}


def _run(call, totals, steps, steps_per_call, progress=None):
    """Runs steps, some per call, while any of the first totals is finite.

    Args:
        call: Function `(start, stop, totals) -> totals`, totals a list of tensors.
        totals: Array `[totals, ...]`, zeros.
        steps: Number of steps.
        steps_per_call: Number of steps of a call.
        progress: Function `(step, steps)`, or None.

    Returns:
        The totals, an array.
    """
    totals = [ops.convert_to_tensor(total) for total in totals]
    for start in range(0, steps, steps_per_call):
        stop = min(start + steps_per_call, steps)
        totals = call(start, stop, totals)
        # Waits for the device: a bar that ran ahead would mislead.
        if not np.isfinite(ops.convert_to_numpy(totals[0])).any():
            break
        if progress is not None:
            progress(stop, steps)
    return np.stack([ops.convert_to_numpy(total) for total in totals])


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
        loop: A `Loop`, or several as `Loops`.
        checkpoints: A `trainers.checkpoints.Checkpoints`, or None to keep none.
        progress: A `trainers.progress.Progress`, or None to be silent.
        on_epoch_end: Function of the history so far, or None.

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
        if not loop.is_finite(row):
            loop.set_state(good)
            kept = f"epoch {good_epoch}" if good_epoch else "the initial weights"
            raise DivergenceError(
                f"Training diverged in epoch {epoch + 1}: nll {np.mean(row['nll']):.4g}"
                f", kl {np.mean(row['kl']):.4g}, at a learning rate of "
                f"{np.mean(row['learning_rate']):.4g}. "
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
