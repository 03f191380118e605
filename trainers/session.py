"""From flags to a trained model: what every binary does around its model."""

import dataclasses

import keras

from bayesnorm import backend, datasets
from bayesnorm.streams.sources import OnDevice, OnHost, of_splits, training_order
from trainers import command, learning_rate
from trainers.checkpoints import Checkpoints, Workdir, write_history
from trainers.flags import FLAGS, defining_flags, image_size
from trainers.loop import Config, Loop, fit
from trainers.optimization import make_optimizer
from trainers.progress import Progress

# Pixels of the smallest image that the networks take without padding.
_UNPADDED = 27


def load_data(dense=False):
    """Returns the `Splits` that the flags name.

    Args:
        dense: Whether it is to have a label for each pixel.

    Raises:
        ValueError: Flags of the other kind of set are given, or what `datasets.load`
            and `datasets.load_segmentation` raise.
    """
    _refuse_other_kind(dense)
    if dense:
        return _first_examples(
            datasets.load_segmentation(
                FLAGS.dataset,
                FLAGS.data_dir,
                FLAGS.split_seed,
                FLAGS.downscale,
                FLAGS.tile,
            )
        )
    splits = datasets.load(
        FLAGS.dataset,
        FLAGS.data_dir,
        FLAGS.split_seed,
        FLAGS.held_out,
        resize=image_size(FLAGS.resize),
        channels=FLAGS.channels,
    )
    splits = _first_examples(splits)
    if FLAGS.ood is None:
        return splits
    images, labels = datasets.load_notmnist(FLAGS.data_dir, FLAGS.ood_file)
    return datasets.with_ood(splits, images, labels, datasets.NOTMNIST_CLASSES)


def padding_for(splits):
    """Returns the flag's padding, by default that which the images' size asks for."""
    small = min(splits.image_shape[:2]) < _UNPADDED
    return FLAGS.padding or ("same" if small else "valid")


def _refuse_other_kind(dense):
    """Refuses flags that only the other kind of set has."""
    names = ("resize", "channels") if dense else ("downscale", "tile")
    given = [
        f"--{name}={command.text(FLAGS[name].value)}"
        for name in names
        if FLAGS[name].value != FLAGS[name].default
    ]
    if given:
        raise ValueError(
            f"{' '.join(given)} would do nothing here: segmentation (cell_fcn) takes "
            "--downscale and --tile, classification of own images --resize and "
            "--channels. Leave them out."
        )


def _first_examples(splits):
    """Returns the set with `--train_examples` and `--validation_examples`."""
    parts = {}
    for name in ("train", "validation"):
        count, part = FLAGS[f"{name}_examples"].value, getattr(splits, name)
        if count is None:
            continue
        if count > len(part):
            raise ValueError(
                f"--{name}_examples must be at most {len(part)}, the examples of "
                f"{splits.name!r}. Received: {count}"
            )
        parts[name] = datasets.Split(part.images[:count], part.labels[:count])
    splits = dataclasses.replace(splits, **parts)
    mean, stddev = datasets.channel_statistics(splits.train.images, splits.scale)
    return dataclasses.replace(splits, channel_mean=mean, channel_stddev=stddev)


class TrainingInputs:
    """Epochs of inputs in random batches, augmented as in training.

    The same batches each time it is iterated over.

    Args:
        splits: The `Splits`.
        batch_size: Integer; a remainder is left out.
        seed: Integer from 0.
        augmentation: As `kind` of `make_augmentation`.
        epochs: Number of epochs.
        part: Part of the set.
    """

    def __init__(
        self, splits, batch_size, seed, augmentation=None, epochs=1, part="train"
    ):
        self.batch_size = batch_size
        self._splits, self._seed, self._epochs = splits, seed, epochs
        self._images = getattr(splits, part).images
        self._augmentation = augmentation

    def __iter__(self):
        """Yields arrays `[batch_size, height, width, channels]`."""
        augment = make_augmentation(self._splits, self._seed, self._augmentation)
        count = len(self._images)
        for epoch in range(self._epochs):
            for indices in training_order(count, self.batch_size, self._seed, epoch):
                images = self._splits.inputs(self._images[indices])
                if augment is not None:
                    images = keras.ops.convert_to_numpy(augment(images, training=True))
                yield images


def open_workdir(name, ignored=()):
    """Opens the folder of the run of the binary `name`; `ignored` as for `Workdir`."""
    path = FLAGS.workdir or f"runs/{name}-{FLAGS.dataset}"
    return Workdir(path, name, defining_flags(), ignored=ignored)


def make_augmentation(splits, seed, kind=None):
    """Returns the layer that augments the data set's images, or None.

    Args:
        splits: The `Splits`.
        seed: Integer from 0.
        kind: A `datasets.Augmentation`; None for the data set's default.
    """
    if not FLAGS.augment:
        return None
    if kind is None:
        # An archive may bear a name that no set here has.
        known = splits.name in datasets.NAMES or splits.dense
        name = splits.name if known else FLAGS.dataset
        kind = datasets.augmentation_for(name, splits.dense)
    if FLAGS.flip is not None:
        kind = kind._replace(flip=FLAGS.flip)
    return keras.Sequential(kind.layers(seed), name="augmentation")


def make_loop(model, splits, seed=None, augmentation=None, data=None):
    """Returns the `Loop` that the flags describe, its learning rate not yet set.

    Args:
        model: A built model, initialized.
        splits: The `Splits`.
        seed: Seed of the order and of the augmentation; None for the flag's.
        augmentation: As `kind` of `make_augmentation`.
        data: `data` of another loop on the same set, which is then not put on the
            device once more; or None.
    """
    seed = FLAGS.seed if seed is None else seed
    config = Config(
        epochs=FLAGS.epochs,
        batch_size=FLAGS.batch_size,
        normalization_batch=FLAGS.normalization_batch,
        schedule=FLAGS.schedule,
        decay=FLAGS.decay,
        decay_epochs=FLAGS.decay_epochs,
        kl_warmup_epochs=FLAGS.kl_warmup_epochs,
        kl_factor=FLAGS.kl_factor,
        augment_validation=FLAGS.augment_validation,
        seed=seed,
        steps_per_call=FLAGS.steps_per_call,
        **({"eval_batch_size": FLAGS.batch_size} if splits.dense else {}),
    )
    return Loop(
        model,
        make_optimizer(FLAGS.optimizer),
        data or of_splits(splits, OnHost if FLAGS.stream else OnDevice),
        config,
        make_augmentation(splits, seed, augmentation),
    )


def set_learning_rate(loop, cache, progress, before_evaluation=None):
    """Sets the learning rate of a `Loop`: the flag's, or what the search finds.

    Args:
        loop: A `Loop` in its initial state.
        cache: Path of a JSON file, as of `learning_rate.search`.
        progress: A `Progress`.
        before_evaluation: As of `learning_rate.search`.
    """
    if FLAGS.learning_rate == "auto":
        rate = learning_rate.search(
            loop,
            epochs=FLAGS.search_epochs,
            evaluations=FLAGS.search_evaluations,
            cache=cache,
            progress=progress,
            before_evaluation=before_evaluation,
        )
    else:
        rate = float(FLAGS.learning_rate)
    loop.config = dataclasses.replace(loop.config, learning_rate=rate)


def train(model, splits, workdir, seed=None, augmentation=None):
    """Trains `model` as the flags say, in `workdir`, or goes on there.

    Args:
        model: A built model, initialized.
        splits: The `Splits`.
        workdir: The `Workdir`; gets checkpoints, `history.csv`, `learning_rate.json`
            if the learning rate is searched for, and scalars for TensorBoard.
        seed: As for `make_loop`.
        augmentation: As `kind` of `make_augmentation`.

    Returns:
        The history of `trainers.loop.fit`.
    """
    progress = Progress()
    loop = make_loop(model, splits, seed, augmentation)
    set_learning_rate(loop, workdir / "learning_rate.json", progress)
    log = backend.scalar_writer(workdir / "tensorboard") if FLAGS.tensorboard else None
    if FLAGS.tensorboard and log is None:
        progress.note("no TensorBoard scalars: they are written with TensorFlow only")
    records = _Records(workdir / "history.csv", log)
    checkpoints = Checkpoints(workdir / "checkpoints", FLAGS.checkpoint_every)
    return fit(loop, checkpoints, [progress, records])


class _Records(keras.callbacks.Callback):
    """Writes `history.csv`, and scalars for TensorBoard."""

    def __init__(self, path, log):
        super().__init__()
        self._path, self._log = path, log

    def on_train_begin(self, logs=None):
        # A run that is over writes it again, if somebody took it away.
        if self.params["history"]:
            write_history(self._path, self.params["history"])

    def on_epoch_end(self, epoch, logs=None):
        history = self.params["history"]
        write_history(self._path, history)
        if self._log is not None:
            scalars = {k: v for k, v in history[-1].items() if k != "epoch"}
            self._log(epoch + 1, scalars)
