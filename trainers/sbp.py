"""Trains networks that learn which of their channels they can do without.

    python -m trainers.sbp
    python -m trainers.sbp --dataset=mnist --data_dir=DIR
    python -m trainers.sbp --dataset=mnist --data_dir=DIR --network=mlp
    python -m trainers.sbp --dataset=cifar10 --data_dir=DIR --network=vgg_like
    python -m trainers.sbp --dataset=npz --data_dir=FILE --start=trained.keras

Trains a network for `--pretrain_epochs`, or takes the trained one of `--start`; puts
structured Bayesian pruning behind its hidden layers and trains on, for `--epochs`;
then removes the channels whose signal-to-noise ratio fell below `--threshold`, trains
what is left for `--finetune_epochs`, and compares the networks before and after: error,
NLL, operations, time. Each phase can be stopped and goes on. With no flags: the digits
of scikit-learn, some minutes on two cores.
Defaults:

    --dataset               digits     mnist      cifar10    npz, image_folder
    --network               lenet5     lenet5     vgg_like   lenet5
    --width                 0.5        1          1          1
    --epochs                100        60         300        100
    --pretrain_epochs       15         10         200        30
    --batch_size            32         128        100        32
    --learning_rate         0.001      0.001      0.0001     0.001
    --pretrain_dropout      0          0.3        1          0
    --kl_factor             1          1.5        1          1
    --conv_kl_factor        1          80,33      1          1
    --decay_start           0.5        0.4        0.5        0.5
    --shrink_epochs         -          6,12,24    -          -
    --augment               false      false      true       true

`npz` and `image_folder` are images of yours, as for `trainers.all_cnn`.

Adam (beta_1 0.95), constant up to `--decay_start` and then falling linearly to 0, as in
the authors' code; so is the tenfold rate of the posteriors. The evidence lower bound
has `--kl_factor=1`; more prunes sooner, and more. `--conv_kl_factor` is beside it.
After each of `--shrink_epochs` the network goes on without the channels pruned so far,
which do not come back, and takes less time.

Reference:
    Neklyudov et al., 2017, "Structured Bayesian Pruning via Log-Normal Multiplicative
    Noise", section 5.
"""

import functools
import itertools
import math

import keras

from bayesnorm import datasets, models
from bayesnorm.pruning import prune
from bayesnorm.surgery.weights import start_pruning
from bayesnorm.training.checkpoints import write_history
from bayesnorm.training.loop import Config
from bayesnorm.training.optimization import make_optimizer
from trainers import flags as trainer_flags
from trainers import groups, session
from trainers.evaluation import methods
from trainers.evaluation.evaluate import evaluate
from trainers.flags import Flag
from trainers.program import Program
from trainers.report import run as report
from trainers.sections import pruning
from trainers.workdir import Workdir


def _passes_positive(values):
    try:
        return all(0 < float(value) < math.inf for value in values or ())
    except ValueError:
        return False


_SBP = (
    Flag("network", ("lenet5", "mlp", "vgg_like", "resnet"), "Network."),
    groups.integer("depth", "Layers of resnet: 8, 14, 20, ...", 20),
    Flag(
        "start",
        "string",
        "File .keras of a trained network to start from, with layers of the same "
        "names; none is trained then.",
        stated="FILE",
    ),
    groups.integer(
        "pretrain_epochs",
        "Epochs without pruning, from which it starts; 0: from the initial weights.",
        least=0,
    ),
    groups.positive("pretrain_learning_rate", "Learning rate of these."),
    groups.integer(
        "finetune_epochs", "Epochs of the smaller network after pruning.", 0, least=0
    ),
    Flag(
        "pretrain_dropout",
        "float",
        "Dropout of these: the rate behind hidden layers, for vgg_like the factor of "
        "its own rates; resnet has none.",
        valid=lambda value: value is None or 0 <= value <= 1,
        expected="must be from 0 to 1",
    ),
    Flag(
        "dropout",
        "float",
        "Likewise of those with pruning: beside its noise, which shrinks where a "
        "channel matters.",
        0.0,
        lambda value: 0 <= value <= 1,
        "must be from 0 to 1",
    ),
    groups.positive(
        "posterior_rate", "Learning rate of the posteriors, in units of the weights'."
    ),
    Flag(
        "beta_1",
        "float",
        "How much of its average gradient Adam, or one of its kin, keeps in a step.",
        0.95,
        lambda value: 0 <= value < 1,
        "must be from 0 and below 1",
    ),
    Flag(
        "decay_start",
        "float",
        "Part of the epochs before the learning rate begins to fall.",
        0.5,
        lambda value: 0 <= value < 1,
        "must be from 0 and below 1",
    ),
    Flag(
        "conv_kl_factor",
        "list",
        "Factor of the KL of convolutions, beside --kl_factor, a number or one for "
        "each: above 1 their channels, which cost time at every position, have to be "
        "worth more.",
        valid=_passes_positive,
        expected="must be finite numbers above 0, separated by commas",
    ),
    Flag(
        "shrink_epochs",
        "list",
        "Epochs after which what is pruned by then is removed from the network that "
        "trains on, for less time; it does not come back. None by default.",
        valid=lambda values: all(value.isdigit() for value in values or ()),
        expected="must be integers, separated by commas",
    ),
    groups.positive("threshold", "Signal-to-noise ratio below which to prune."),
)

_COMMON = {
    "batch_size": 32,
    "optimizer": "adam",
    "learning_rate": "0.001",
    "schedule": "linear",
    "width": 1.0,
    "augment": False,
    "augment_validation": False,
    "pretrain_learning_rate": 0.001,
    "pretrain_dropout": 0.0,
    "posterior_rate": 10.0,
    "conv_kl_factor": ["1"],
    "threshold": 1.0,
}
_OWN = {"network": "lenet5", "epochs": 100, "pretrain_epochs": 30, "augment": True}
_DEFAULTS = {
    # Fewer units than there are images: 500 that each carry little are pruned at once,
    # and what they carried together is lost.
    "digits": {
        "network": "lenet5",
        "epochs": 100,
        "pretrain_epochs": 15,
        "width": 0.5,
    },
    # Found on seed 1. A channel of the first convolution costs most multiplications.
    "mnist": {
        "network": "lenet5",
        "epochs": 60,
        "pretrain_epochs": 10,
        "pretrain_dropout": 0.3,
        "batch_size": 128,
        "kl_factor": 1.5,
        "conv_kl_factor": ["80", "33"],
        "decay_start": 0.4,
        "shrink_epochs": ["6", "12", "24"],
    },
    "cifar10": {
        "network": "vgg_like",
        "epochs": 300,
        "pretrain_epochs": 200,
        "pretrain_dropout": 1.0,
        "batch_size": 100,
        "learning_rate": "0.0001",
        "augment": True,
    },
    "npz": _OWN,
    "image_folder": _OWN,
}
# Batch-normalized as in the paper, or not.
_NORMS = {"lenet5": None, "mlp": None, "vgg_like": "batch", "resnet": "batch"}


def build(flags, splits, scale):
    """Returns the network, initialized.

    Args:
        flags: The flags of the run.
        splits: The `Splits`.
        scale: `"plain"` or `"pruning"`.
    """
    arguments = {}
    if flags.network == "lenet5":
        arguments["padding"] = session.padding_for(flags, splits)
    if flags.network == "resnet":
        arguments["depth"] = flags.depth
    else:
        rates = {"plain": flags.pretrain_dropout, "pruning": flags.dropout}
        arguments["dropout"] = rates[scale]
    if scale == "pruning":
        arguments["threshold"] = flags.threshold
    return getattr(models, flags.network)(
        splits.image_shape,
        splits.num_classes,
        norm=_NORMS[flags.network],
        scale=scale,
        width=flags.width,
        seed=groups.SEED_STRIDE * flags.seed,
        **arguments,
    )


def augmentation(splits):
    """Returns the augmentation of a data set, None for the set's own."""
    # Padded by 4 pixels and cropped, as in the authors' code.
    own = {"cifar10": datasets.Augmentation(4, flip=True, reflect=True)}
    return own.get(splits.name)


def trained_network(flags, splits, workdir):
    """Returns the network that pruning starts from: read, trained, or untrained.

    Args:
        flags: The flags of the run.
        splits: The `Splits`.
        workdir: The `Workdir` of the run; the folder `pretrained` in it gets what the
            training leaves.
    """
    if flags.start is not None:
        return session.load_network(flags.start)
    model = build(flags, splits, "plain")
    if flags.pretrain_epochs:
        print("without pruning")
        rate = str(flags.pretrain_learning_rate)
        _train_plain(
            flags, model, splits, workdir, "pretrained", rate, flags.pretrain_epochs
        )
        print("with pruning")
    return model


def _train_plain(flags, model, splits, workdir, folder, rate, epochs):
    """Trains a network without pruning layers, or goes on, in a folder of its own."""
    session.train(
        flags,
        model,
        splits,
        _folder(flags, workdir, folder),
        augmentation=augmentation(splits),
        optimizer=_optimizer(flags),
        learning_rate=rate,
        epochs=epochs,
    )


def _folder(flags, workdir, name):
    return Workdir(workdir / name, f"sbp {name}", trainer_flags.defining(flags))


def finetuned_network(flags, splits, workdir):
    """Returns the smaller network, trained on; saves it as `finetuned.keras`.

    Args:
        flags: The flags of the run.
        splits: The `Splits`.
        workdir: The `Workdir`, with `pruned.keras`; the folder `finetuned` in it gets
            what the training leaves.
    """
    model = session.load_network(workdir / "pruned.keras")
    print("without what was pruned")
    rate, epochs = flags.learning_rate, flags.finetune_epochs
    _train_plain(flags, model, splits, workdir, "finetuned", rate, epochs)
    model.save(workdir / "finetuned.keras")
    return model


def _optimizer(flags, rate_factors=()):
    return make_optimizer(
        flags.optimizer, rate_factors=rate_factors, beta_1=flags.beta_1
    )


def train(flags, splits, trained, workdir):
    """Trains the network with pruning, or goes on.

    Args:
        flags: The flags of the run.
        splits: The `Splits`.
        trained: The network to start from.
        workdir: The `Workdir`; a folder in it, `epoch_N`, gets what the training until
            each of `--shrink_epochs` leaves.

    Returns:
        `(model, history, whole)`: the network, the history of all epochs, and the
        network of before anything was removed, which is the same one without
        `--shrink_epochs`.
    """
    whole = model = start_pruning(trained, build(flags, splits, "pruning"))
    for layer, factor in zip(_of_maps(model), _conv_factors(flags, model), strict=True):
        layer.kl_factor = factor
    history, changes = [], {}
    for begin, end in itertools.pairwise([0, *_shrink_epochs(flags), flags.epochs]):
        if begin:
            model, _ = prune(model, keep_posteriors=True)
            print(f"without the channels pruned by epoch {begin}")
            changes = _going_on(flags, splits, history, begin)
        folder = workdir
        if end < flags.epochs:
            folder = _folder(flags, workdir, f"epoch_{end}")
        posteriors = [
            variable
            for layer in pruning.layers(model)
            for variable in (layer.mean, layer.log_stddev)
        ]
        rows = session.train(
            flags,
            model,
            splits,
            folder,
            augmentation=augmentation(splits),
            detail=pruning.detail,
            optimizer=_optimizer(flags, [(posteriors, flags.posterior_rate)]),
            figures=pruning.figures,
            **{"decay_epochs": flags.decay_epochs or flags.epochs, **changes},
            epochs=end - begin,
        )
        history += [{**row, "epoch": begin + row["epoch"]} for row in rows]
    write_history(workdir / "history.csv", history)
    return model, history, whole


def _of_maps(model):
    """Returns the pruning layers of convolutions."""
    return [x for x in pruning.layers(model) if len(x.input.shape) == 4]


def _conv_factors(flags, model):
    factors = [float(factor) for factor in flags.conv_kl_factor]
    number = len(_of_maps(model))
    if len(factors) != number and not flags["conv_kl_factor"].present:
        # Defaults are of the network that a data set has by default.
        return [1.0] * number
    if len(factors) not in (1, number):
        raise ValueError(
            f"--conv_kl_factor must be a number, or one for each of the {number} "
            f"convolutions that are pruned. Received: {len(factors)}"
        )
    return factors * number if len(factors) == 1 else factors


def _shrink_epochs(flags):
    epochs = [int(epoch) for epoch in flags.shrink_epochs or ()]
    ordered = [*epochs, flags.epochs]
    if epochs and (ordered != sorted(set(ordered)) or epochs[0] < 1):
        raise ValueError(
            "--shrink_epochs must rise, from 1 on and below --epochs. Received: "
            f"{epochs}, --epochs={flags.epochs}"
        )
    if epochs and epochs[0] < flags.kl_warmup_epochs:
        raise ValueError(
            f"--shrink_epochs must not be before --kl_warmup_epochs="
            f"{flags.kl_warmup_epochs}. Received: {epochs}"
        )
    return epochs


def _going_on(flags, splits, history, begin):
    """Returns what `session.train` has others of, that goes on after an epoch."""
    steps = len(splits.train) // flags.batch_size
    first = history[0]["learning_rate"]
    names = ("epochs", "schedule", "decay", "decay_epochs", "decay_start")
    whole = Config(learning_rate=first, **{name: flags[name].value for name in names})
    rates = functools.cache(lambda epoch: whole.learning_rates(epoch, steps))

    def rate(step):
        epoch, step = divmod(step, steps)
        return rates(begin + epoch)[step]

    return {"learning_rate": str(first), "schedule": rate, "kl_warmup_epochs": 0}


def main(flags):
    """Trains, prunes and reports; returns the `Records`."""
    keras.utils.set_random_seed(flags.seed)
    splits = session.load_data(flags)
    workdir = session.open_workdir(flags, "sbp")
    trained = trained_network(flags, splits, workdir)
    model, history, whole = train(flags, splits, trained, workdir)
    chunks = {"chunk_size": methods.chunk_size(splits)}
    found = methods.standard(model, flags.samples, flags.seed, **chunks)
    plain = chunks | methods.MEAN
    found["trained"] = methods.Method("before pruning", [trained], plain)
    removed = pruning.remove(model, whole, trained, flags.threshold, workdir)
    found["pruned"] = methods.Method("after pruning", [removed.model], plain)
    if flags.finetune_epochs:
        tuned = finetuned_network(flags, splits, workdir)
        found["finetuned"] = methods.Method("trained on after pruning", [tuned], plain)
    evaluation = evaluate(flags, splits, model, history, found, "one_pass")
    sections = pruning.sections(flags.network, removed)
    return report.write(workdir, evaluation, describe(flags), sections)


def describe(flags):
    """Returns what the flags train, as a noun phrase."""
    start = f"the network of `{flags.start}`" if flags.start else "initial weights"
    if not flags.start and flags.pretrain_epochs:
        start = f"{flags.pretrain_epochs} epochs without it"
    return (
        f"{flags.network} of width {flags.width:g} with structured Bayesian pruning, "
        f"from {start}, seed {flags.seed}"
    )


PROGRAM = Program(
    "sbp",
    (
        groups.RUN,
        groups.DATA_PARALLEL,
        groups.DATA,
        groups.CLASSIFICATION,
        groups.TRAINING,
        groups.WIDTH,
        groups.PADDING,
        groups.KL,
        _SBP,
    ),
    _COMMON,
    _DEFAULTS,
    main,
)
run = PROGRAM.run


if __name__ == "__main__":
    run()
