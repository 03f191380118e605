"""Samples the posterior of networks without batch normalization.

    python -m trainers.atmc
    python -m trainers.atmc --runs=atmc_small --seeds=0,1,2
    python -m trainers.atmc --dataset=cifar10 --data_dir=DIR
    python -m trainers.atmc --dataset=cifar10 --data_dir=DIR --sampler=sgd --norm=batch
    python -m trainers.atmc --dataset=cifar10 --data_dir=DIR --runs=atmc --seeds=0,1
    python -m trainers.atmc --dataset=imagenet2012 --data_dir=DIR
    python -m trainers.atmc --chains=4 --jobs=2

Runs `--chains` chains of a sampler (`bayesnorm.samplers`) over the weights of a network
with its priors, keeps a sample at the end of each cycle of the learning rate after
`--burn_in_epochs`, and compares one sample, the last, with the average prediction of
all. `--sampler=sgd` trains as usual, with the priors as weight decay: the baselines,
with `--norm=batch` the one with batch normalization. Chains are independent jobs; each
can be stopped and goes on. With no flags: the digits of scikit-learn, some minutes on
two cores. Defaults:

    --dataset          digits   mnist    cifar10   imagenet2012   npz, image_folder
    --network          lenet5   resnet_plus_plus
    --depth                     11       56        50             20
    --width            0.5      0.5      2         1              1
    --batch_size       64       128      128       256            32
    --epochs           1000     60       1000      300            300
    --burn_in_epochs   300      20       150       100            100
    --cycle_epochs     10       5        50        20             20
    --rms_step         0.002    0.001    0.0003    0.0003         0.001
    --momentum         0.98     0.9      0.9       0.9            0.9
    --thermostat_mass  0.01     0.01     1         1              0.01
    --augment          false    false    true      true           true

A step at the first learning rate has the root mean square `--rms_step` at temperature 1
and is that of SGD with the momentum `--momentum` and a learning rate of about `N
rms_step^2`, for N training examples: the fewer there are, the wider the posterior, and
the longer the steps. `npz` and `image_folder` are images of yours, as for
`trainers.all_cnn`.

To sample a small network of yours, say `--network=lenet5` or `mlp`:

1. Give it a wide prior (`--prior_stddev=1`, on a thousand images): under a narrow one,
   as weight normalization has, the average is not confident enough.
2. Take the longest steps that keep both temperatures at 1. Where the kinetic one rises,
   halve `--rms_step`; where the configurational one is below, the weights have not yet
   spread: more epochs of burn-in, or more momentum.
3. Take many samples, 50 or more: each fits the training data, errs elsewhere with
   confidence, and is by itself worse than SGD. What is good is their average.

Reference:
    Heek & Kalchbrenner, 2019, "Bayesian Inference for Large Scale Image
    Classification", section 5.
"""

import dataclasses
import math

import keras

from bayesnorm import models, samplers
from bayesnorm.prediction.weight_sets import WeightSets
from bayesnorm.samplers import (
    CyclicalCosine,
    PosteriorSamples,
    SamplerDiagnostics,
    diagnostics,
)
from bayesnorm.training.checkpoints import Checkpoints, write_history
from trainers import flags as trainer_flags
from trainers import groups, jobs, session
from trainers.comparison import main as comparison
from trainers.evaluation import methods
from trainers.evaluation.evaluate import evaluate
from trainers.flags import Flag
from trainers.program import Program
from trainers.report import run as report
from trainers.sections import chains
from trainers.workdir import Workdir

_SAMPLERS = {"atmc": samplers.ATMC, "sgnht": samplers.SGNHT, "sghmc": samplers.SGHMC}
# Of a step at the first learning rate, in units of `--rms_step`.
_LARGEST_STEP = 10 / 3
# A unit of time: schedules say parts of it.
_FIRST_RATE = 0.001
# The networks, and the normalization of each by default.
_NORMS = {"mlp": "none", "lenet5": "none", "resnet_plus_plus": "weight"}
# How the samples of all chains are read in the folder of a run.
_LOADING = """chains = [
    bayesnorm.samplers.PosteriorSamples.load(f"chain-{{n}}/samples", model)
    for n in range({chains})
]
network = bayesnorm.WeightSets(model, [sample for chain in chains for sample in chain])
"""
# Hidden layers of mlp.
_UNITS = (100, 100)
_ATMC = (
    Flag("sampler", ("atmc", "sgnht", "sghmc", "sgd"), "What moves the weights."),
    Flag("network", tuple(_NORMS), "The network; units of mlp: 100, 100."),
    Flag(
        "norm",
        ("none", "weight", "batch"),
        "Normalization: none, with a normal prior of all weights; of weights, with the "
        "priors of the paper; or of batches, without a prior. By default of weights in "
        "resnet_plus_plus, and none in the others.",
    ),
    groups.positive(
        "prior_stddev",
        "Standard deviation of the normal prior: of all weights without a "
        "normalization, else of biases and the last layer.",
    ),
    groups.integer(
        "depth", "Layers of resnet_plus_plus: 9 n + 2 for small images; 50, 101, 152."
    ),
    groups.integer("chains", "Independent chains.", 1),
    groups.integer("cycle_epochs", "Epochs of a cycle of the learning rate."),
    groups.integer("burn_in_epochs", "Epochs before the first cycle that counts."),
    groups.positive("rms_step", "Root mean square of a weight's first steps."),
    Flag(
        "momentum",
        "float",
        "What a step at the first learning rate leaves of the momentum, before "
        "thermostats take more: at 0.98 a chain goes on for 50 steps in a direction "
        "before it turns, at 0.9 for 10.",
        valid=lambda value: value is None or 0 < value < 1,
        expected="must be a number between 0 and 1",
    ),
    groups.positive("thermostat_mass", "Inertia of the thermostats."),
    Flag(
        "temperature",
        "float",
        "Temperature of the posterior; 1 is Bayes.",
        1.0,
        lambda value: value >= 0,
        "must be a number from 0",
    ),
    Flag("exact_kick", "bool", "Whether kicks are exact on a quadratic.", False),
)

_COMMON = {
    "sampler": "atmc",
    "optimizer": "sgd",
    # Of --sampler=sgd alone.
    "learning_rate": "0.01",
    "schedule": "cosine",
    "augment": False,
    "augment_validation": False,
    "network": "resnet_plus_plus",
    "prior_stddev": 1.0,
    "momentum": 0.9,
}
_OWN = {
    "depth": 20,
    "width": 1.0,
    "batch_size": 32,
    "epochs": 300,
    "burn_in_epochs": 100,
    "cycle_epochs": 20,
    "rms_step": 0.001,
    "thermostat_mass": 0.01,
    "augment": True,
}
_DEFAULTS = {
    # A thousand images, and fifteen thousand steps.
    "digits": {
        "network": "lenet5",
        "momentum": 0.98,
        "depth": 11,
        "width": 0.5,
        "batch_size": 64,
        "epochs": 1000,
        "burn_in_epochs": 300,
        "cycle_epochs": 10,
        "rms_step": 0.002,
        "thermostat_mass": 0.01,
        "checkpoint_every": 50,
    },
    "mnist": {
        "depth": 11,
        "width": 0.5,
        "batch_size": 128,
        "epochs": 60,
        "burn_in_epochs": 20,
        "cycle_epochs": 5,
        "rms_step": 0.001,
        "thermostat_mass": 0.01,
    },
    "cifar10": {
        "depth": 56,
        "width": 2.0,
        "batch_size": 128,
        "epochs": 1000,
        "burn_in_epochs": 150,
        "cycle_epochs": 50,
        "rms_step": 0.0003,
        "thermostat_mass": 1.0,
        "augment": True,
    },
    "imagenet2012": {
        "depth": 50,
        "width": 1.0,
        "batch_size": 256,
        "epochs": 300,
        "burn_in_epochs": 100,
        "cycle_epochs": 20,
        "rms_step": 0.0003,
        "thermostat_mass": 1.0,
        "augment": True,
    },
    "npz": _OWN,
    "image_folder": _OWN,
}


@dataclasses.dataclass(frozen=True)
class Chain:
    """A chain that ended.

    Attributes:
        model: The network, with the last weights.
        history: The history of its epochs.
        samples: `WeightSets`, its samples; None for `--sampler=sgd`.
        verdict: What its temperatures mean, a sentence or two; empty for SGD.
    """

    model: keras.Model
    history: list
    samples: WeightSets | None = None
    verdict: str = ""


def samples_of(flags):
    """Returns how many samples a chain takes."""
    return max(0, flags.epochs - flags.burn_in_epochs) // flags.cycle_epochs


def chain_seed(flags, number):
    """Returns the seed of a chain, its own in all runs of different `--seed`."""
    return flags.seed * flags.chains + number


def norm_of(flags):
    """Returns the normalization, `"none"`, `"weight"` or `"batch"`."""
    return flags.norm or _NORMS[flags.network]


def build(flags, splits, number):
    """Returns the network of a chain, initialized, with its priors."""
    seed = chain_seed(flags, number)
    keras.utils.set_random_seed(seed)
    norm = norm_of(flags)
    own = {
        "mlp": {"units": _UNITS},
        "lenet5": {"padding": session.padding_for(flags, splits)},
        "resnet_plus_plus": {"depth": flags.depth},
    }
    return getattr(models, flags.network)(
        splits.image_shape,
        splits.num_classes,
        norm=None if norm == "none" else norm,
        width=flags.width,
        num_examples=None if norm == "batch" else len(splits.train),
        prior_stddev=flags.prior_stddev,
        input_mean=splits.channel_mean,
        input_variance=splits.channel_stddev**2,
        seed=groups.SEED_STRIDE * seed,
        **own[flags.network],
    )


def make_sampler(flags, splits, seed):
    """Returns the sampler that the flags name."""
    steps = len(splits.train) // flags.batch_size
    arguments = {}
    if flags.sampler != "sghmc":
        arguments["thermostat_mass"] = flags.thermostat_mass
    if flags.sampler == "atmc":
        arguments["speed_limit"] = _LARGEST_STEP * flags.rms_step / _FIRST_RATE
    return _SAMPLERS[flags.sampler](
        len(splits.train),
        CyclicalCosine(_FIRST_RATE, flags.cycle_epochs * steps),
        friction=-math.log(flags.momentum) / _FIRST_RATE,
        mass=(_FIRST_RATE / flags.rms_step) ** 2,
        exact_kick=flags.exact_kick,
        temperature=flags.temperature,
        seed=seed,
        **arguments,
    )


def chain_workdir(flags, path, number):
    """Opens the folder of a chain in the folder `path` of the whole run."""
    return Workdir(
        f"{path}/chain-{number}",
        "atmc chain",
        trainer_flags.defining(flags),
        {"chain": str(number)},
    )


def run_chain(flags, splits, path, number, checkpoints=Checkpoints):
    """Runs a chain, or goes on, or loads what it has become; returns the `Chain`.

    Args:
        flags: The flags of the run.
        splits: The `Splits`.
        path: Folder of the whole run.
        number: Integer from 0.
        checkpoints: As of `session.train`.
    """
    if flags.chains > 1:
        print(f"chain {number}")
    model = build(flags, splits, number)
    workdir = chain_workdir(flags, path, number)
    seed = chain_seed(flags, number)
    if flags.sampler == "sgd":
        history = session.train(
            flags, model, splits, workdir, seed, checkpoints=checkpoints
        )
        return Chain(model, history)
    sampler = make_sampler(flags, splits, seed)
    watch = SamplerDiagnostics(
        workdir / "tensorboard" if flags.tensorboard else None, sampler, verbose=False
    )
    folder = workdir / "samples"
    history = session.train(
        flags,
        model,
        splits,
        workdir,
        seed,
        detail=chains.detail,
        checkpoints=checkpoints,
        callbacks=[
            watch,
            PosteriorSamples(folder, flags.cycle_epochs, flags.burn_in_epochs),
        ],
        figures=lambda model: diagnostics.figures(sampler),
        optimizer=sampler,
        learning_rate=str(_FIRST_RATE),
    )
    verdict = diagnostics.verdict(sampler)
    print(verdict)
    return Chain(model, history, PosteriorSamples.load(folder, model), verdict)


def run_in_a_job(flags, path, number):
    """Runs a chain in a process of its own."""
    run_chain(flags, session.load_data(flags), path, number)


def main(flags):
    """Samples and reports; returns the `Records`, or of `--runs` all contents."""
    if flags.runs:
        return comparison.main("trainers.atmc", flags, _COLUMNS)
    if flags["seeds"].present:
        raise ValueError("--seeds is of several runs (--runs); of one give --seed.")
    if flags.sampler != "sgd" and not samples_of(flags):
        raise ValueError(
            "There is no cycle after the burn-in: --epochs must be --burn_in_epochs + "
            f"--cycle_epochs or more. Received: --epochs={flags.epochs}, "
            f"--burn_in_epochs={flags.burn_in_epochs}, "
            f"--cycle_epochs={flags.cycle_epochs}"
        )
    if flags.sampler != "sgd" and flags.norm == "batch":
        raise ValueError(
            "Batch normalization makes the loss of an example depend on the others: it "
            "has no posterior to sample. Take another --norm, or --sampler=sgd."
        )
    splits = session.load_data(flags)
    workdir = session.open_workdir(flags, "atmc")
    numbers = range(flags.chains)
    jobs.run(PROGRAM, "run_in_a_job", flags, [(str(workdir.path), n) for n in numbers])
    found = [run_chain(flags, splits, workdir.path, n) for n in numbers]
    write_history(workdir / "history.csv", found[0].history)
    model = found[0].model
    posterior = None
    if found[0].samples is not None:
        sets = [weights for chain in found for weights in chain.samples]
        posterior = WeightSets(model, sets)
    evaluation = evaluate(
        flags,
        splits,
        model,
        found[0].history,
        methods_of(found, splits, posterior),
        shown="one_pass" if posterior is None and flags.chains == 1 else "posterior",
    )
    return report.write(
        workdir,
        evaluation,
        describe(flags),
        chains.sections(found, posterior),
        served=posterior,
    )


def methods_of(found, splits, posterior):
    """Returns the ways to predict, by key.

    Args:
        found: List of `Chain`s.
        splits: The `Splits`.
        posterior: `WeightSets` of the samples of all chains; None for SGD, of which
            several runs are an ensemble.
    """
    arguments = methods.MEAN | {"chunk_size": methods.chunk_size(splits)}
    ended = [chain.model for chain in found]
    ways = {"one_pass": methods.Method("last weights", ended, arguments, "one sample")}
    if posterior is not None:
        title = f"posterior predictive, {len(posterior)} samples"
        kept = arguments | {"keep_samples": True}
        ways["posterior"] = methods.Method(
            title, [posterior], kept, "posterior", _LOADING.format(chains=len(found))
        )
    elif len(ended) > 1:
        title = f"ensemble of {len(ended)}"
        ways["posterior"] = methods.Method(title, [ended], arguments, "ensemble")
    return ways


def describe(flags):
    """Returns what the flags train, as a noun phrase."""
    how = {"sgd": "SGD"}.get(flags.sampler, flags.sampler.upper())
    norm = {
        "none": f"a normal prior of deviation {flags.prior_stddev:g}",
        "weight": "weight normalization and priors",
        "batch": "batch normalization",
    }[norm_of(flags)]
    network = {
        "mlp": "Dense network of 100 and 100 units",
        "lenet5": "LeNet-5",
        "resnet_plus_plus": f"ResNet++ of {flags.depth} layers",
    }[flags.network]
    number = f", {flags.chains} chains" if flags.chains > 1 else ""
    temperature = (
        f", temperature {flags.temperature:g}" if flags.sampler != "sgd" else ""
    )
    return (
        f"{network}, width {flags.width:g}, with {norm}, by "
        f"{how}{temperature}{number}, seed {flags.seed}. Of the first chain"
    )


_COLUMNS = [
    ("accuracy, %", "accuracy", ".2f"),
    ("NLL", "nll", ".3f"),
    ("ECE, %", "ece_equal_width", ".2f"),
]
PROGRAM = Program(
    "atmc",
    (
        groups.RUN,
        groups.DATA_PARALLEL,
        groups.COMPARISON,
        groups.JOBS,
        groups.DATA,
        groups.CLASSIFICATION,
        groups.TRAINING,
        groups.WIDTH,
        groups.PADDING,
        _ATMC,
    ),
    _COMMON,
    _DEFAULTS,
    main,
)
run = PROGRAM.run


if __name__ == "__main__":
    run()
