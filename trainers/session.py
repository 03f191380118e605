"""From flags to a trained model: what every binary does around its model."""

import dataclasses
import functools

import keras

from bayesnorm import backend, datasets
from bayesnorm.training import learning_rate
from bayesnorm.training.checkpoints import Checkpoints, write_history
from bayesnorm.training.loop import Config, Loop, fit
from bayesnorm.training.optimization import make_optimizer
from bayesnorm.training.parts import of_splits
from bayesnorm.training.progress import Progress
from bayesnorm.training.sources import OnDevice, OnHost, training_order
from trainers import flags as trainer_flags
from trainers.groups import image_size
from trainers.workdir import Workdir, workdir_path

# Pixels of the smallest image that the networks take without padding.
_UNPADDED = 27


def load_data(flags, dense=False):
    """Returns the `Splits` that the flags name.

    Args:
        flags: The flags of a run.
        dense: Whether it is to have a label for each pixel.

    Raises:
        ValueError: What `datasets.load` and `datasets.load_segmentation` raise, or if
            more examples are asked for than there are.
    """
    place = (flags.dataset, flags.data_dir, flags.split_seed)
    if dense:
        splits = datasets.load_segmentation(*place, flags.downscale, flags.tile)
        return _first_examples(flags, splits)
    splits = datasets.load(
        *place,
        flags.held_out,
        resize=image_size(flags.resize),
        channels=flags.channels,
    )
    splits = _first_examples(flags, splits)
    if flags.ood is None:
        return splits
    images, labels = datasets.load_notmnist(flags.data_dir, flags.ood_file)
    return datasets.with_ood(splits, images, labels, datasets.NOTMNIST_CLASSES)


def load_network(path):
    """Returns the Keras model in a file.

    Raises:
        ValueError: If it cannot be loaded: it is damaged, of layers that are not known,
            or has code in it, which is not run.
    """
    try:
        return keras.models.load_model(path)
    except Exception as error:  # Keras has no exception of its own for a bad file.
        raise ValueError(
            f"{str(path)!r} cannot be loaded as a Keras model: {type(error).__name__}: "
            f"{error}\nExpected NAME.keras as model.save writes it, of Keras's layers "
            "or this package's; those of your own are known once their module is "
            "imported, and a Lambda with code in it is not loaded."
        ) from error


def padding_for(flags, splits):
    """Returns the flag's padding, by default that which the images' size asks for."""
    small = min(splits.image_shape[:2]) < _UNPADDED
    return flags.padding or ("same" if small else "valid")


def _first_examples(flags, splits):
    """Returns the set with `--train_examples` and `--validation_examples`."""
    parts = {}
    for name in ("train", "validation"):
        count, part = flags[f"{name}_examples"].value, getattr(splits, name)
        if count is None:
            continue
        if count > len(part):
            raise ValueError(
                f"--{name}_examples must be at most {len(part)}, the examples of "
                f"{splits.name!r}. Received: {count}"
            )
        parts[name] = part.first(count)
    splits = dataclasses.replace(splits, **parts)
    mean, stddev = datasets.channel_statistics(splits.train.images, splits.scale)
    return dataclasses.replace(splits, channel_mean=mean, channel_stddev=stddev)


class TrainingInputs:
    """Epochs of inputs in random batches, augmented as in training.

    The same batches each time it is iterated over.

    Args:
        flags: The flags of a run.
        splits: The `Splits`.
        batch_size: Integer; a remainder is left out.
        seed: Integer from 0.
        augmentation: As `kind` of `make_augmentation`.
        epochs: Number of epochs.
        part: Part of the set.
    """

    def __init__(
        self, flags, splits, batch_size, seed, augmentation=None, epochs=1, part="train"
    ):
        self.batch_size = batch_size
        self._flags = flags
        self._splits, self._seed, self._epochs = splits, seed, epochs
        self._images = getattr(splits, part).images
        self._augmentation = augmentation

    def __iter__(self):
        """Yields arrays `[batch_size, height, width, channels]`."""
        augment = make_augmentation(
            self._flags, self._splits, self._seed, self._augmentation
        )
        count = len(self._images)
        for epoch in range(self._epochs):
            for indices in training_order(count, self.batch_size, self._seed, epoch):
                images = self._splits.inputs(self._images[indices])
                if augment is not None:
                    images = keras.ops.convert_to_numpy(augment(images, training=True))
                yield images


def open_workdir(flags, name):
    """Opens the folder of the run of the binary `name`."""
    path = workdir_path(flags, name)
    return Workdir(path, name, trainer_flags.defining(flags))


def make_augmentation(flags, splits, seed, kind=None):
    """Returns the layer that augments the data set's images, or None.

    Args:
        flags: The flags of a run.
        splits: The `Splits`.
        seed: Integer from 0.
        kind: A `datasets.Augmentation`; None for the data set's default.
    """
    if not flags.augment or isinstance(splits.train, datasets.StreamedSplit):
        return None  # A stream is augmented where it is read.
    if kind is None:
        # An archive may bear a name that no set here has.
        known = splits.name in datasets.NAMES or splits.dense
        name = splits.name if known else flags.dataset
        kind = datasets.augmentation_for(name, splits.dense)
    if flags.flip is not None:
        kind = kind._replace(flip=flags.flip)
    return keras.Sequential(kind.layers(seed), name="augmentation")


def make_loop(
    flags,
    model,
    splits,
    seed=None,
    augmentation=None,
    data=None,
    optimizer=None,
    figures=None,
    **changes,
):
    """Returns the `Loop` that the flags describe, its learning rate not yet set.

    Args:
        flags: The flags of a run; those that a binary does not take stay at the
            defaults of `Config`.
        model: A built model, initialized.
        splits: The `Splits`.
        seed: Seed of the order and of the augmentation; None for the flag's.
        augmentation: As `kind` of `make_augmentation`.
        data: `data` of another loop on the same set, which is then not put on the
            device once more; or None.
        optimizer: A Keras optimizer; None for the flag's.
        figures: As of `Loop`.
        **changes: Fields of `Config` that are others than the flags'.
    """
    seed = flags.seed if seed is None else seed
    settings = {
        field.name: flags[field.name].value
        for field in dataclasses.fields(Config)
        # The learning rate may be one to search for.
        if field.name in flags and field.name != "learning_rate"
    }
    if splits.dense:
        settings["eval_batch_size"] = flags.batch_size
    config = Config(**(settings | changes | {"seed": seed}))
    optimizer = optimizer or make_optimizer(flags.optimizer)
    if flags.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return Loop(
        model,
        optimizer,
        data
        or of_splits(splits, OnHost if flags.stream else OnDevice, flags.augment, seed),
        config,
        make_augmentation(flags, splits, seed, augmentation),
        functools.partial(backend.compiled_loop, xla=flags.xla),
        figures,
    )


def set_learning_rate(flags, loop, cache, progress, before_evaluation=None, rate=None):
    """Sets the learning rate of a `Loop`: the flag's, or what the search finds.

    Args:
        flags: The flags of a run.
        loop: A `Loop` in its initial state.
        cache: Path of a JSON file, as of `learning_rate.search`.
        progress: A `Progress`.
        before_evaluation: As of `learning_rate.search`.
        rate: What the flag says, None for that of `--learning_rate`.
    """
    rate = rate or flags.learning_rate
    if rate == "auto":
        rate = learning_rate.search(
            loop,
            epochs=flags.search_epochs,
            evaluations=flags.search_evaluations,
            cache=cache,
            progress=progress,
            before_evaluation=before_evaluation,
        )
    else:
        rate = float(rate)
    loop.config = dataclasses.replace(loop.config, learning_rate=rate)


def train(
    flags,
    model,
    splits,
    workdir,
    seed=None,
    augmentation=None,
    detail=None,
    callbacks=(),
    checkpoints=Checkpoints,
    **changes,
):
    """Trains `model` as the flags say, in `workdir`, or goes on there.

    Args:
        flags: The flags of a run.
        model: A built model, initialized.
        splits: The `Splits`.
        workdir: The `Workdir`; gets checkpoints, `history.csv`, `learning_rate.json`
            if the learning rate is searched for, and scalars for TensorBoard.
        seed: As for `make_loop`.
        augmentation: As `kind` of `make_augmentation`.
        detail: As of `Progress`.
        callbacks: List of further `keras.callbacks.Callback`s, called before the line
            of an epoch is written: figures that they add to its row are in the history.
        checkpoints: Function of their folder, and of `every`, that returns them.
        **changes: Further arguments of `make_loop`; `learning_rate` is a text as the
            flag's.

    Returns:
        The history of `bayesnorm.training.loop.fit`.
    """
    progress = Progress(detail=detail)
    rate = changes.pop("learning_rate", None)
    loop = make_loop(flags, model, splits, seed, augmentation, **changes)
    cache = workdir / "learning_rate.json"
    set_learning_rate(flags, loop, cache, progress, rate=rate)
    log = backend.scalar_writer(workdir / "tensorboard") if flags.tensorboard else None
    if flags.tensorboard and log is None:
        progress.note("no TensorBoard scalars: they are written with TensorFlow only")
    records = _History(workdir / "history.csv", log)
    kept = checkpoints(workdir / "checkpoints", flags.checkpoint_every)
    return fit(loop, kept, [*callbacks, progress, records])


class _History(keras.callbacks.Callback):
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
