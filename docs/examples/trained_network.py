"""A trained network gets uncertainty: digits it knows, digits it never saw.

    python docs/examples/trained_network.py [FOLDER]

Trains LeNet-5 with batch normalization on scikit-learn's digits 0 to 7, makes it
stochastic without training anything again, and draws two pictures: a reliability
diagram, and how the prediction settles with the number of samples.
"""

import pathlib
import sys

import keras

import bayesnorm

FOLDER = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "docs/examples")

# %% The network, as it was before anyone thought of uncertainty.
keras.utils.set_random_seed(0)
digits = bayesnorm.datasets.load("digits")  # 8 and 9 are held out
images, labels = digits.inputs(digits.train.images), digits.train.labels
model = bayesnorm.models.lenet5(
    digits.image_shape, digits.num_classes, norm="batch", width=0.5, padding="same"
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss)
model.fit(images, labels, batch_size=16, epochs=10, verbose=2)

# %% Two calls.
model = bayesnorm.to_stochastic(model)
bayesnorm.calibrate(model, images, batch_size=16)

# %% What it knows, and what it does not.
test, outside = digits.inputs(digits.test.images), digits.inputs(digits.ood.images)
known = bayesnorm.predict(model, test, samples=100, seed=0, keep_samples=True)
strange = bayesnorm.predict(model, outside, samples=100, seed=0)
scores = bayesnorm.metrics.classification_summary(known.probs, digits.test.labels)
found = bayesnorm.metrics.ood_summary(known.entropy, strange.entropy)
print(f"NLL {scores['nll']:.3f} nats, error {scores['error']:.2f} %")
print(
    f"mean entropy {found['entropy_in']:.3f} nats on 0 to 7, "
    f"{found['entropy_out']:.3f} on 8 and 9: AUROC {found['auroc']:.1f} %"
)

# %% The pictures.
plots = bayesnorm.plots
figure = plots.reliability_diagram(known.probs, digits.test.labels)
figure.savefig(FOLDER / "reliability.png", dpi=80)
needed = bayesnorm.samples_needed(known, tolerance=0.05, error_rate=0.05)
print(f"entropies within 0.05 nats for 95 % of the digits: {needed.samples} samples")
plots.samples_needed(needed).savefig(FOLDER / "samples.png", dpi=80)
figure = plots.entropy_cdf(
    {"0 to 7": known.entropy, "8 and 9": strange.entropy}, digits.num_classes
)
figure.savefig(FOLDER / "entropy.png", dpi=80)
