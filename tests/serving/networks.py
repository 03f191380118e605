"""Networks of every kind that is exported.

Each function returns `(model, inputs, arguments)`: 7 examples, and what `predict` and
exports are to be told.
"""

import keras
import numpy as np
from keras import layers

import bayesnorm
from bayesnorm.layers import StochasticScaleNorm


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def scaled():
    """Convolutions, poolings, batch normalization, stochastic scales; two inputs."""
    inputs = keras.Input((8, 8, 2), name="image")
    number = keras.Input((1,), name="number")
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    x = layers.LeakyReLU(0.1)(StochasticScaleNorm(initial_stddev=0.5)(x))
    x = layers.MaxPooling2D()(x)
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(x))
    x = layers.ReLU()(StochasticScaleNorm(initial_stddev=0.5)(x))
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x) * 3.0, number])
    model = keras.Model([inputs, number], layers.Dense(3)(x))
    return model, [normal(7, 8, 8, 2), normal(7, 1)], {"from_logits": True}


def batch_normalized(law):
    x = normal(64, 8, 8, 1)
    model = bayesnorm.models.lenet5(
        (8, 8, 1), 5, norm="batch", width=0.2, padding="same"
    )
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, np.arange(64) % 5, batch_size=8, epochs=15, verbose=0)
    model = bayesnorm.to_stochastic(model)
    bayesnorm.calibrate(model, x, batch_size=8, law=law, verbose=False)
    return model, x[:7], {"from_logits": True}


def wide():
    """Logits so uncertain that their softmax is integrated."""
    inputs = keras.Input((4,))
    x = StochasticScaleNorm(initial_stddev=1.0)(layers.Dense(6)(inputs))
    model = keras.Model(inputs, layers.Dense(3)(layers.Activation("tanh")(x)))
    model.layers[-1].kernel.assign(5.0 * normal(6, 3))
    return model, normal(7, 4), {"from_logits": True}


def several_outputs():
    inputs = keras.Input((4,))
    x = StochasticScaleNorm(initial_stddev=0.5)(layers.Dense(5)(inputs))
    outputs = [
        layers.Dense(3, activation="softmax", name="kind")(x),
        layers.Dense(2, activation="sigmoid", name="tags")(x),
        layers.Dense(1, name="age")(x),
    ]
    tasks = {"kind": "classification", "tags": "multilabel", "age": "regression"}
    temperature = {"kind": 2.0, "tags": 0.5, "age": None}
    arguments = {"task": tasks, "temperature": temperature}
    return keras.Model(inputs, outputs), normal(7, 4), arguments


def regression():
    inputs = keras.Input((4,))
    x = bayesnorm.MonteCarloDropout(0.3)(layers.Dense(8, activation="elu")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    return model, normal(7, 4), {"task": "regression"}


def segmentation():
    inputs = keras.Input((None, None, 2))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = StochasticScaleNorm(initial_stddev=0.5)(x)
    x = layers.AveragePooling2D(3, 1, padding="same")(x)
    model = keras.Model(inputs, layers.Softmax()(layers.Conv2D(3, 1)(x)))
    return model, normal(7, 6, 9, 2), {}


def yes_or_no():
    inputs = keras.Input((4,))
    x = StochasticScaleNorm(initial_stddev=0.5)(layers.Dense(5)(inputs))
    model = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))
    return model, normal(7, 4), {}


def thinned(prune):
    """Structured Bayesian pruning as trained, and the network that is left."""
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(6, 3, use_bias=False)(inputs)
    x = layers.ReLU()(bayesnorm.StructuredBayesianPruning(use_bias=True)(x))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    model = keras.Model(inputs, layers.Dense(3)(x))
    theta = model.layers[2]
    theta.mean.assign(np.array([0, -1, -9, 0, -12, -0.5], "float32"))
    theta.log_stddev.assign(np.array([-1, -0.5, 1.0, -3, 1.5, 0.0], "float32"))
    if prune:
        model, report = bayesnorm.prune(model)
        assert report.macs[1] < report.macs[0]
    return model, normal(7, 8, 8, 1), {"from_logits": True}


def ensemble():
    """Members of one architecture."""
    models = [yes_or_no()[0] for _ in range(3)]
    return bayesnorm.WeightSets.of(models), normal(7, 4), {}


def posterior_samples():
    """Samples of the weights of a chain, with noise of their own."""
    model = several_outputs()[0]
    arguments = {"task": several_outputs()[2]["task"]}
    sampler = bayesnorm.samplers.SGLD(learning_rate=1e-3, num_examples=64)
    model.compile(sampler, {"kind": "mse", "tags": "mse", "age": "mse"})
    x, sets = normal(64, 4), []
    labels = [np.zeros((64, units), "float32") for units in (3, 2, 1)]
    for _ in range(3):
        model.fit(x, labels, batch_size=16, epochs=2, verbose=0)
        sets.append(model.get_weights())
    return bayesnorm.WeightSets(model, sets), x[:7], arguments


def learned_posterior():
    """Posteriors on the scales of a trained network."""
    x = normal(64, 8, 8, 1)
    inputs = keras.Input((8, 8, 1))
    y = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    y = layers.GlobalAveragePooling2D()(layers.ReLU()(y))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(y))
    return bayesnorm.to_posterior(model, initial_stddev=0.3), x[:7], {}


# Of one model, and of several sets of weights.
ENSEMBLES = {"ensemble": ensemble, "posterior samples": posterior_samples}
NETWORKS = {
    "scaled": scaled,
    "joint law": lambda: batch_normalized("joint"),
    "independent law": lambda: batch_normalized("independent"),
    "wide": wide,
    "learned posterior": learned_posterior,
    "several outputs": several_outputs,
    "regression": regression,
    "segmentation": segmentation,
    "yes or no": yes_or_no,
    "pruning": lambda: thinned(False),
    "pruned": lambda: thinned(True),
}
