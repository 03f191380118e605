"""Trains the All-CNN with a Bayesian normalization.

    python -m trainers.all_cnn
    python -m trainers.all_cnn --dataset=cifar10 --data_dir=DIR --width=0.25 --epochs=20
    python -m trainers.all_cnn --dataset=cifar10 --data_dir=DIR --runs=table1

With no flags: the digits of scikit-learn, two classes held out, a minute on a CPU. On
CIFAR-10 the network and the 1200 epochs are the paper's; `--learning_rate=auto` finds
the learning rate as the paper does, which costs some 60 epochs. Defaults:

    --dataset         digits     mnist      cifar10
    --epochs          80         50         1200
    --batch_size      32         32         32
    --width           0.25       0.5        1
    --optimizer       adam       sgd        sgd
    --learning_rate   0.003      0.005      auto
    --initial_stddev  0.3        0.1        0.1
    --augment         false      true       true
    --padding         same       valid      valid

Reference:
    Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian Learning",
    section 4 and appendix B.
"""

import keras

from bayesnorm import models
from bayesnorm.tools.initialization import data_dependent_init
from trainers import comparison_report, flags, report, session
from trainers.flags import FLAGS
from trainers.sections import batch_noise, perturbations

# As in the docstring, which `--help` shows.
_COMMON = {
    "batch_size": 32,
    "optimizer": "sgd",
    "schedule": "exponential",
    "initial_stddev": 0.1,
    "augment": True,
    "padding": "valid",
}
_DEFAULTS = {
    # A thousand images: Adam moves the posteriors in the few steps that there are.
    "digits": {
        "epochs": 80,
        "optimizer": "adam",
        "learning_rate": "0.003",
        "width": 0.25,
        "initial_stddev": 0.3,
        "augment": False,
        # The images are smaller than what the unpadded network takes.
        "padding": "same",
    },
    "mnist": {"epochs": 50, "width": 0.5, "learning_rate": "0.005"},
    "cifar10": {"epochs": 1200, "width": 1.0, "learning_rate": "auto"},
}
_INIT_BATCH = 128


def build(splits):
    """Returns the network that the flags describe, initialized."""
    norm = None if FLAGS.norm == "none" else FLAGS.norm
    model = models.all_cnn(
        splits.image_shape,
        splits.num_classes,
        norm=norm,
        scale=FLAGS.scale,
        projection=FLAGS.projection,
        width=FLAGS.width,
        padding=FLAGS.padding,
        input_mean=splits.channel_mean,
        input_variance=splits.channel_stddev**2,
        seed=flags.SEED_STRIDE * FLAGS.seed,
        **scale_arguments(),
    )
    if norm in (None, "weight"):
        data_dependent_init(model, splits.inputs(splits.train.images[:_INIT_BATCH]))
    return model


def scale_arguments():
    """Returns the arguments of the scale that the flags describe."""
    if FLAGS.scale == "plain":
        return {}
    if FLAGS.scale == "stochastic":
        return {"initial_stddev": FLAGS.initial_stddev}
    found = {}
    for name in ("scale_stddev", "shift_stddev"):
        values = [float(value) for value in FLAGS[name].value or ()]
        if not values:
            raise ValueError(
                f"--scale=noisy needs --{name}: a number, or one for each layer, such "
                "as the report of a run with --norm=batch gives."
            )
        found[name] = values[0] if len(values) == 1 else values
    return found


def sections(splits, model, methods, figures):
    """Returns what the report of this binary adds."""
    found = perturbations.sections(splits, model, methods, figures)
    if FLAGS.norm == "batch":
        found |= batch_noise.sections(splits, model, figures)
    return found


def columns():
    """Returns the columns of several runs: those of the paper's table 1, and more."""
    methods = {
        "one pass": "one_pass",
        "MC-10": "averaged_10",
        f"MC-{FLAGS.samples}": "averaged",
    }
    figures = (("accuracy, %,", "accuracy", ".2f"), ("NLL,", "nll", ".3f"))
    tested = [
        (f"test {title} {name}", f"test/{key}_{method}", form)
        for title, key, form in figures
        for name, method in methods.items()
    ]
    return [
        *tested,
        ("validation NLL", "validation/nll", ".3f"),
        ("training NLL", "train/nll", ".3f"),
        ("learning rate", "train/first_learning_rate", ".4f"),
        ("s / epoch", "seconds/epoch", ".1f"),
    ]


def describe():
    """Returns what the flags train, as a noun phrase."""
    norm = "no" if FLAGS.norm == "none" else FLAGS.norm
    projected = ", projected kernels" if FLAGS.projection else ""
    return (
        f"All-CNN of width {FLAGS.width:g} with {norm} normalization, "
        f"{FLAGS.scale} scale{projected}, seed {FLAGS.seed}"
    )


def main():
    """Trains and reports; returns the content of `metrics.json`."""
    if FLAGS.runs:
        return comparison_report.main("trainers.all_cnn", columns())
    flags.set_defaults(_COMMON | _DEFAULTS[FLAGS.dataset])
    keras.utils.set_random_seed(FLAGS.seed)
    splits = session.load_data()
    workdir = session.open_workdir("all_cnn")
    model = build(splits)
    history = session.train(model, splits, workdir)
    methods = report.posterior_methods(model, FLAGS.samples, FLAGS.seed)
    return report.write(
        workdir,
        model,
        splits,
        history,
        describe(),
        methods,
        shown="averaged" if "averaged" in methods else "one_pass",
        samples=FLAGS.samples,
        title=FLAGS.dataset_title,
        sections=lambda figures, _: sections(splits, model, methods, figures),
    )


def run():
    """Runs the binary."""
    flags.run(main)


if __name__ == "__main__":
    run()
