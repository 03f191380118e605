"""A dense network learns which of its pixels and units it can do without.

    python docs/examples/pruning.py [FOLDER]

Trains a network on scikit-learn's digits, goes on with structured Bayesian pruning,
removes what became noise, and draws what is left and the signal-to-noise ratios.
"""

import pathlib
import sys

import keras
import numpy as np

import bayesnorm

FOLDER = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "docs/examples")

keras.utils.set_random_seed(0)
digits = bayesnorm.datasets.load("digits", held_out=())
images, labels = digits.inputs(digits.train.images), digits.train.labels
test = digits.inputs(digits.test.images)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(scale):
    """784-500-300-10 in small: 64 pixels, 100 and 50 units."""
    return bayesnorm.models.mlp(digits.image_shape, 10, units=(100, 50), scale=scale)


def error(model):
    """Test error in per cent."""
    return 100 * np.mean(np.argmax(model(test), axis=-1) != digits.test.labels)


# %% The network to start from.
trained = network("plain")
trained.compile(keras.optimizers.Adam(0.003), loss)
trained.fit(images, labels, batch_size=64, epochs=15, verbose=2)

# %% The same with a random scale for each pixel and unit, which learns to be noise.
model = bayesnorm.start_pruning(trained, network("pruning"))
bayesnorm.set_kl_weight(model, 1 / len(images))
model.compile(keras.optimizers.Adam(0.01), loss)
model.fit(images, labels, batch_size=64, epochs=60, verbose=2)

# %% What is noise goes.
smaller, report = bayesnorm.prune(model)
print(report)
print(f"error {error(trained):.2f} % before, {error(smaller):.2f} % after")
print(f"outputs differ by {report.error:.1e} of the largest")

# %% The pictures.
bayesnorm.plots.kept_channels(report.kept).savefig(FOLDER / "kept.png", dpi=80)
ratios = {
    layer.name: layer.snr()
    for layer in model.layers
    if isinstance(layer, bayesnorm.StructuredBayesianPruning)
}
figure = bayesnorm.plots.signal_to_noise(ratios, threshold=1.0)
figure.savefig(FOLDER / "signal_to_noise.png", dpi=80)
