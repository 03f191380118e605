"""Trains the All-CNN with a Bayesian normalization.

    python -m trainers.all_cnn
    python -m trainers.all_cnn --dataset=cifar10 --data_dir=DIR --width=0.25 --epochs=20
    python -m trainers.all_cnn --dataset=cifar10 --data_dir=DIR --runs=table1
    python -m trainers.all_cnn --dataset=image_folder --data_dir=DIR --resize=32

With no flags: the digits of scikit-learn, two classes held out, a minute on a CPU. On
CIFAR-10 the network and the 1200 epochs are the paper's; `--learning_rate=auto` finds
the learning rate as the paper does, which costs some 60 epochs. Defaults:

    --dataset         digits     mnist      cifar10    npz, image_folder
    --epochs          80         50         1200       100
    --batch_size      32         32         32         32
    --width           0.25       0.5        1          0.5
    --optimizer       adam       sgd        sgd        adam
    --learning_rate   0.003      0.005      auto       0.003
    --initial_stddev  0.3        0.1        0.1        0.1
    --augment         false      true       true       true

`npz` and `image_folder` are images of yours: `--data_dir` is the file, or the folder
with a folder for each class; `--resize` makes them one size.

Reference:
    Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian Learning",
    section 4 and appendix B.
"""

from bayesnorm import models
from trainers import groups, normalized, session
from trainers.program import Program
from trainers.sections import batch_noise, perturbations

# As in the docstring, which `--help` shows.
_COMMON = {
    "optimizer": "sgd",
    "initial_stddev": 0.1,
    "augment": True,
}
_OWN = {
    "epochs": 100,
    "width": 0.5,
    # There may be few images, as of the digits.
    "optimizer": "adam",
    "learning_rate": "0.003",
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
    },
    "mnist": {"epochs": 50, "width": 0.5, "learning_rate": "0.005"},
    "cifar10": {"epochs": 1200, "width": 1.0, "learning_rate": "auto"},
    "npz": _OWN,
    "image_folder": _OWN,
}


NETWORK = normalized.Network(
    name="all_cnn",
    title="All-CNN",
    constructor=models.all_cnn,
    arguments=lambda flags, splits: {"padding": session.padding_for(flags, splits)},
    sections=(perturbations.gaussian, perturbations.gradient, batch_noise.section),
    columns=[("accuracy, %", "accuracy", ".2f"), ("NLL", "nll", ".3f")],
)
PROGRAM = Program(
    "all_cnn",
    (*normalized.GROUPS, groups.CLASSIFICATION, groups.PADDING),
    _COMMON,
    _DEFAULTS,
    NETWORK.main,
)
run = PROGRAM.run


if __name__ == "__main__":
    run()
