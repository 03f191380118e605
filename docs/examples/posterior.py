"""Samples of the posterior of a small network, by ATMC as a Keras optimizer.

    python docs/examples/posterior.py [FOLDER]

The recipe of the guide, shortened to 300 epochs of a narrower network, so that the
average of the samples is better than each of them, and no more than that is claimed.
Draws the NLL over the number of samples.
"""

import pathlib
import sys
import tempfile

import keras
from matplotlib.figure import Figure

import bayesnorm
from bayesnorm import metrics, samplers

FOLDER = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "docs/examples")
CYCLE, BURN_IN, EPOCHS, BATCH = 5, 100, 300, 64

keras.utils.set_random_seed(0)
digits = bayesnorm.datasets.load("digits", held_out=())
images, labels = digits.inputs(digits.train.images), digits.train.labels
number = len(images)

# %% A network without batch normalization, and a normal prior of all its weights.
model = bayesnorm.models.lenet5(
    digits.image_shape,
    digits.num_classes,
    norm=None,
    width=0.25,
    padding="same",
    num_examples=number,
    prior_stddev=0.5,
    input_mean=digits.channel_mean,
    input_variance=digits.channel_stddev**2,
)
schedule = samplers.CyclicalCosine(0.001, CYCLE * -(-number // BATCH))
sampler = samplers.ATMC(
    number, schedule, mass=0.25, friction=20.0, thermostat_mass=0.01, seed=0
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(sampler, loss)

# %% A chain, which leaves a sample at the end of each cycle.
with tempfile.TemporaryDirectory() as chain:
    model.fit(
        images,
        labels,
        batch_size=BATCH,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[
            samplers.SamplerDiagnostics(),
            samplers.PosteriorSamples(chain, CYCLE, BURN_IN),
        ],
    )
    posterior = samplers.PosteriorSamples.load(chain, model)

# %% One sample, and the average of more and more.
test = digits.inputs(digits.test.images)
prediction = bayesnorm.predict(
    posterior, test, method="mean", from_logits=True, keep_samples=True
)
samples, truth = prediction.samples, digits.test.labels
counts = range(1, len(samples) + 1)
averages = [metrics.brier(samples[:count].mean(0), truth) for count in counts]
single = sum(metrics.brier(probs, truth) for probs in samples) / len(samples)
print(f"Brier score {single:.4f} of a sample, {averages[-1]:.4f} of all {len(samples)}")

# %% The picture.
figure = Figure((5, 3.5), layout="constrained")
ax = figure.subplots()
ax.plot(counts, averages, label="average of so many")
ax.axhline(single, color="grey", linestyle=":", label="a sample, on average")
ax.set(xlabel="samples", ylabel="Brier score, test digits")
ax.legend()
figure.savefig(FOLDER / "posterior.png", dpi=80)
