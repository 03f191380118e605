"""Trains the cell segmentation network with a Bayesian normalization.

    python -m trainers.cell_fcn
    python -m trainers.cell_fcn --dataset=image_folder --data_dir=DIR --tile=128
    python -m trainers.cell_fcn --dataset=dic_hela --data_dir=DIR --runs=segmentation

With no flags: cells made on the spot, a few minutes on two cores. `image_folder` is a
folder of yours, with images/ and labels/ of one name each, 0 for background. For
DIC-C2DH-HeLa of the Cell Tracking Challenge, in a TensorFlow Datasets folder, the
defaults are the paper's but for --activation. 70 % of the images are for training and
validation; they are flipped and deformed, image and mask alike. Division is by image:
frames of one film (as of dic_hela) or tiles cut beforehand fall into training and test,
and test figures are too good for new films. Defaults:

    --dataset         cells      image_folder  dic_hela
    --epochs          150        100           3000
    --batch_size      4          4             4
    --width           0.5        0.5           1
    --learning_rate   0.001      0.001         auto
    --decay           0.1        0.1           0.001
    --kl_factor       0.1        0.1           0.1

Reference:
    Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian Learning",
    section 4.2 and appendix B.
"""

from bayesnorm import models
from trainers import groups, normalized
from trainers.flags import Flag
from trainers.program import Program
from trainers.sections import batch_noise, segmentation

_ACTIVATION = Flag(
    "activation",
    ("softmax", "leaky_relu", "softplus"),
    "Activation; the paper writes softmax, over the channels.",
    "leaky_relu",
)

# As in the docstring, which `--help` shows.
_COMMON = {
    "batch_size": 4,
    "optimizer": "adam",
    "initial_stddev": 0.1,
    "augment": True,
    "kl_factor": 0.1,
}
# At higher rates Adam turns kernels of norm 1 too far, to mere averages of the image.
_SMALL = {"width": 0.5, "learning_rate": "0.001", "decay": 0.1}
_DEFAULTS = {
    "cells": _SMALL | {"epochs": 150},
    "image_folder": _SMALL | {"epochs": 100},
    "dic_hela": {
        "epochs": 3000,
        "width": 1.0,
        "learning_rate": "auto",
        # By 0.1 in 1000 epochs.
        "decay": 0.001,
    },
}


NETWORK = normalized.Network(
    name="cell_fcn",
    title="Segmentation network",
    constructor=models.cell_fcn,
    arguments=lambda flags, splits: {"activation": flags.activation},
    sections=(segmentation.baselines, segmentation.places, batch_noise.section),
    columns=[
        ("IoU, %", "iou", ".1f"),
        ("pixel accuracy, %", "accuracy", ".2f"),
        ("NLL a pixel", "nll", ".4f"),
    ],
    dense=True,
)
PROGRAM = Program(
    "cell_fcn",
    (*normalized.GROUPS, groups.SEGMENTATION, (_ACTIVATION,)),
    _COMMON,
    _DEFAULTS,
    NETWORK.main,
)
run = PROGRAM.run


if __name__ == "__main__":
    run()
