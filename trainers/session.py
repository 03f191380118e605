"""From flags to a trained model: what every binary does around its model."""

import dataclasses

import keras

from bayesnorm import backend, datasets
from trainers import learning_rate
from trainers.checkpoints import Checkpoints, Workdir, write_history
from trainers.flags import FLAGS, defining_flags
from trainers.loop import Config, Loop, fit, make_optimizer
from trainers.progress import Progress


def load_data():
    """Returns the `Splits` that the flags name."""
    held_out = FLAGS.held_out
    if held_out is not None:
        held_out = [int(name) if name.isdigit() else name for name in held_out]
    return datasets.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.split_seed, held_out)


def open_workdir(name):
    """Opens the folder of the run of the binary `name`."""
    path = FLAGS.workdir or f"runs/{name}-{FLAGS.dataset}"
    return Workdir(path, name, defining_flags())


def make_augmentation(splits):
    """Returns the layer that augments the data set's images, or None."""
    if not FLAGS.augment:
        return None
    kind = datasets.augmentation_for(splits.name)
    layers = [datasets.RandomShift(kind.max_shift, seed=2 * FLAGS.seed)]
    if kind.flip:
        layers.append(datasets.RandomFlip(seed=2 * FLAGS.seed + 1))
    return keras.Sequential(layers, name="augmentation")


def train(model, splits, workdir):
    """Trains `model` as the flags say, in `workdir`, or goes on there.

    Args:
        model: A built model, initialized.
        splits: The `Splits`.
        workdir: The `Workdir`; gets checkpoints, `history.csv`, `learning_rate.json`
            if the learning rate is searched for, and scalars for TensorBoard.

    Returns:
        The history of `trainers.loop.fit`.
    """
    progress = Progress()
    config = Config(
        epochs=FLAGS.epochs,
        batch_size=FLAGS.batch_size,
        decay=FLAGS.decay,
        decay_epochs=FLAGS.decay_epochs,
        kl_warmup_epochs=FLAGS.kl_warmup_epochs,
        augment_validation=FLAGS.augment_validation,
        seed=FLAGS.seed,
        steps_per_call=FLAGS.steps_per_call,
    )
    loop = Loop(
        model,
        make_optimizer(FLAGS.optimizer),
        splits,
        config,
        make_augmentation(splits),
    )
    if FLAGS.learning_rate == "auto":
        rate = learning_rate.search(
            loop,
            epochs=FLAGS.search_epochs,
            evaluations=FLAGS.search_evaluations,
            cache=workdir / "learning_rate.json",
            progress=progress,
        )
    else:
        rate = float(FLAGS.learning_rate)
    loop.config = dataclasses.replace(config, learning_rate=rate)
    log = backend.scalar_writer(workdir / "tensorboard") if FLAGS.tensorboard else None
    if FLAGS.tensorboard and log is None:
        progress.note("no TensorBoard scalars: they are written with TensorFlow only")

    def on_epoch_end(history):
        write_history(workdir / "history.csv", history)
        if log is not None:
            log(len(history), {k: v for k, v in history[-1].items() if k != "epoch"})

    checkpoints = Checkpoints(workdir / "checkpoints", FLAGS.checkpoint_every)
    history = fit(loop, checkpoints, progress, on_epoch_end)
    # Again: a run may have been killed between its last checkpoint and this file.
    write_history(workdir / "history.csv", history)
    return history
