"""Trains batch-normalized networks and measures stochastic batch normalization.

    python -m trainers.sbn
    python -m trainers.sbn --dataset=mnist --data_dir=DIR --ood=notmnist --ood_file=FILE
    python -m trainers.sbn --dataset=cifar10 --held_out=5,6,7,8,9 --network=vgg11
    python -m trainers.sbn --dataset=npz --data_dir=FILE --network=resnet18

Trains `--members` networks with plain batch normalization, and as many with dropout
beside it; converts them, calibrates them, and compares plain batch normalization,
stochastic batch normalization (SBN) with the joint law of statistics and with the
paper's independent ones, the statistics of real batches (MCBN), dropout and ensembles,
each alone and with SBN, in and out of the domain. Members are independent
jobs (`--jobs`, `--parallel`); each can be stopped and goes on. Defaults:

    --dataset         digits     mnist      cifar10    npz, image_folder
    --network         lenet5     lenet5     vgg11      lenet5
    --epochs          30         50         200        50
    --batch_size      16         16         16         16
    --augment         false      false      true       true
    --held_out        8,9        -          5,6,7,8,9  -

`npz` and `image_folder` are images of yours, as for `trainers.all_cnn`.

Adam from 0.001, falling linearly to 0, dropout 0.5: as in the authors' code.

Reference:
    Atanov et al., 2018, "Uncertainty Estimation via Stochastic Batch Normalization",
    section 4.
"""

import functools

import keras

from bayesnorm import datasets, models
from bayesnorm.layers.stochastic_batch_norm import stochastic_batch_normalizations
from bayesnorm.measurement.calibrate import calibrate
from bayesnorm.surgery.to_stochastic import to_stochastic
from bayesnorm.training.checkpoints import write_history
from trainers import flags as trainer_flags
from trainers import groups, jobs, session
from trainers.evaluation.evaluate import evaluate
from trainers.evaluation.methods import MEAN, Method, sampling
from trainers.flags import Flag
from trainers.program import Program
from trainers.report import run as report
from trainers.sections import batch_statistics
from trainers.workdir import Workdir

_SBN = (
    Flag("network", ("lenet5", "vgg11", "resnet18"), "Network."),
    groups.integer("members", "Networks of an ensemble.", 3, least=2),
    Flag(
        "dropout",
        "float",
        "Rate after each ReLU of the second family of networks; 0: no such family "
        "(resnet18 has none).",
        0.5,
        lambda value: 0 <= value <= 0.95,
        "must be from 0 to 0.95",
    ),
    Flag("minibatch", "bool", "Whether to compare with MCBN as well.", True),
)

_COMMON = {
    "batch_size": 16,
    "optimizer": "adam",
    "learning_rate": "0.001",
    "schedule": "linear",
    "width": 1.0,
    "augment": False,
    "augment_validation": False,
}
_OWN = {"network": "lenet5", "epochs": 50, "augment": True}
_DEFAULTS = {
    "digits": {"network": "lenet5", "epochs": 30, "width": 0.5},
    "mnist": {"network": "lenet5", "epochs": 50},
    "cifar10": {
        "network": "vgg11",
        "epochs": 200,
        "augment": True,
        "held_out": ["5", "6", "7", "8", "9"],
    },
    "npz": _OWN,
    "image_folder": _OWN,
}
_PLAIN, _DROPOUT = "plain", "dropout"


def families(flags):
    """Returns the families of networks: name -> rate of dropout."""
    rates = {_PLAIN: 0.0}
    if flags.dropout and flags.network != "resnet18":
        rates[_DROPOUT] = flags.dropout
    return rates


def member_seed(flags, family, number):
    """Returns the seed of a member, its own in all runs of different `--seed`."""
    families_and_members = 2 * flags.members
    offset = flags.members * (family == _DROPOUT) + number
    return flags.seed * families_and_members + offset


def build(flags, splits, family, number):
    """Returns the network of a member, initialized."""
    keras.utils.set_random_seed(member_seed(flags, family, number))
    arguments = (
        {} if flags.network == "resnet18" else {"dropout": families(flags)[family]}
    )
    if flags.network == "lenet5":
        arguments["padding"] = session.padding_for(flags, splits)
    return getattr(models, flags.network)(
        splits.image_shape,
        splits.num_classes,
        width=flags.width,
        seed=groups.SEED_STRIDE * member_seed(flags, family, number),
        **arguments,
    )


def augmentation(splits):
    """Returns the augmentation of a data set, None for the set's own."""
    # Padded by reflection by 4 pixels and cropped, as in the authors' code.
    own = {"cifar10": datasets.Augmentation(4, flip=True, reflect=True)}
    return own.get(splits.name)


def member_workdir(flags, path, family, number):
    """Opens the folder of a member in the folder `path` of the whole run."""
    return Workdir(
        f"{path}/{family}-{number}",
        "sbn member",
        trainer_flags.defining(flags),
        {"family": family, "number": str(number)},
    )


def train_member(flags, splits, path, family, number):
    """Trains a member, or goes on, or loads what it has become.

    Args:
        flags: The flags of the run.
        splits: The `Splits`.
        path: Folder of the whole run.
        family: Name of its family.
        number: Integer from 0.

    Returns:
        `(model, history)`.
    """
    seed = member_seed(flags, family, number)
    model = build(flags, splits, family, number)
    workdir = member_workdir(flags, path, family, number)
    print(f"network {family}-{number}")
    return model, session.train(
        flags, model, splits, workdir, seed, augmentation(splits)
    )


def train_in_a_job(flags, path, family, number):
    """Trains a member in a process of its own."""
    train_member(flags, session.load_data(flags), path, family, number)


def make_stochastic(flags, splits, model, seed):
    """Returns the network with calibrated stochastic batch normalization."""
    converted = to_stochastic(model, seed=groups.SEED_STRIDE * seed)
    return calibrate(converted, training_inputs(flags, splits, seed))


def reestimated(model):
    """Returns the network with the calibration's means as its moving averages."""
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    for layer in stochastic_batch_normalizations(new):
        mean, _, log_variance, stddev = layer.statistics_moments()
        layer.moving_mean.assign(mean)
        variance = keras.ops.exp(log_variance + 0.5 * stddev**2) - layer.epsilon
        layer.moving_variance.assign(variance)
    return new


def independent(model):
    """Returns the network with the paper's law: each statistic drawn by itself."""
    new = keras.models.clone_model(model)
    new.set_weights(model.get_weights())
    for layer in stochastic_batch_normalizations(new):
        layer.set_law_rank(0)
    return new


def training_inputs(flags, splits, seed):
    """Returns an epoch of training inputs, as the networks were trained."""
    return session.TrainingInputs(
        flags, splits, flags.batch_size, seed, augmentation(splits)
    )


def held_out_inputs(flags, splits, seed):
    """Returns the same of the validation part, in two batches or more."""
    size = min(flags.batch_size, len(splits.validation) // 2)
    return session.TrainingInputs(
        flags, splits, size, seed, augmentation(splits), part="validation"
    )


def methods_of(flags, splits, plain, stochastic):
    """Returns the methods of the paper's comparison, by key.

    Args:
        flags: The flags of the run.
        splits: The `Splits`.
        plain: Family -> the members as trained.
        stochastic: Family -> the members, calibrated.
    """
    mean, sample = MEAN, sampling(flags.samples, flags.seed)
    # An ensemble draws as many networks in all as a single network does.
    shared = sample | {"samples": -(-flags.samples // flags.members)}
    methods = {
        "bn": Method("BN", plain[_PLAIN], mean),
        # The same passes over the data that SBN is calibrated by, without its noise.
        "bn_reestimated": Method(
            "BN, averages re-estimated", [*map(reestimated, stochastic[_PLAIN])], mean
        ),
        "sbn": Method("SBN", stochastic[_PLAIN], sample),
        "sbn_independent": Method(
            "SBN, independent", [*map(independent, stochastic[_PLAIN])], sample
        ),
    }
    if flags.minibatch:
        batches = training_inputs(flags, splits, flags.seed)
        real = sample | {"method": "minibatch", "train_data": batches}
        methods["mcbn"] = Method("MCBN (member 0)", stochastic[_PLAIN][:1], real)
    methods["ensemble"] = Method("ensemble", [plain[_PLAIN]], mean)
    methods["ensemble_sbn"] = Method("ensemble + SBN", [stochastic[_PLAIN]], shared)
    if _DROPOUT in plain:
        methods["dropout"] = Method("dropout", plain[_DROPOUT], sample)
        methods["dropout_sbn"] = Method("dropout + SBN", stochastic[_DROPOUT], sample)
    return methods


def main(flags):
    """Trains, calibrates and reports; returns the `Records`."""
    splits = session.load_data(flags)
    workdir = session.open_workdir(flags, "sbn")
    members = [(f, n) for f in families(flags) for n in range(flags.members)]
    jobs.run(
        PROGRAM,
        "train_in_a_job",
        flags,
        [(str(workdir.path), *member) for member in members],
    )
    plain, histories = {}, {}
    for family, number in members:
        model, history = train_member(flags, splits, workdir.path, family, number)
        plain.setdefault(family, []).append(model)
        histories[family, number] = history
    write_history(workdir / "history.csv", histories[_PLAIN, 0])
    stochastic = {
        family: [
            make_stochastic(flags, splits, model, member_seed(flags, family, i))
            for i, model in enumerate(of_family)
        ]
        for family, of_family in plain.items()
    }
    print(f"calibrated {len(members)} networks")
    evaluation = evaluate(
        flags,
        splits,
        stochastic[_PLAIN][0],
        histories[_PLAIN, 0],
        methods_of(flags, splits, plain, stochastic),
        shown="sbn",
    )
    return report.write(
        workdir, evaluation, describe(flags), sections_of(flags, splits)
    )


def sections_of(flags, splits):
    """Returns the functions of the sections that the report of this binary adds."""
    seed = member_seed(flags, _PLAIN, 0)
    batches = training_inputs(flags, splits, seed)
    held_out = held_out_inputs(flags, splits, seed)
    return (
        batch_statistics.errors,
        batch_statistics.entropies,
        functools.partial(batch_statistics.real_batches, batches=batches),
        functools.partial(batch_statistics.statistics, held_out=held_out),
    )


def describe(flags):
    """Returns what the flags train, as a noun phrase."""
    dropout = (
        f", and with dropout {flags.dropout:g}" if _DROPOUT in families(flags) else ""
    )
    return (
        f"{flags.network} of width {flags.width:g} with batch normalization, "
        f"{flags.members} members{dropout}, seed {flags.seed}. Of the first member, "
        f"`{_PLAIN}-0/`, whose `history.csv` is here as well"
    )


PROGRAM = Program(
    "sbn",
    (
        groups.RUN,
        groups.DATA_PARALLEL,
        groups.JOBS,
        groups.DATA,
        groups.CLASSIFICATION,
        groups.TRAINING,
        groups.WIDTH,
        groups.PADDING,
        _SBN,
    ),
    _COMMON,
    _DEFAULTS,
    main,
)
run = PROGRAM.run


if __name__ == "__main__":
    run()
