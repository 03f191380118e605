"""What a user writes, as mypy reads it (`mypy`, settings in `pyproject.toml`).

`use` must pass, and runs in a test. Each line of `misuse` must not: mypy takes an
ignored error that is none for an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, assert_type

import keras
import numpy as np
from matplotlib.figure import Figure

import bayesnorm
from bayesnorm.types import Nest, Task


class Shift(bayesnorm.StochasticLayer):
    """A noisy layer of one's own."""

    def build(self, input_shape: bayesnorm.types.Shape) -> None:
        self.channels = input_shape[-1]

    @property
    def noise_shapes(self) -> dict[str, Any]:
        return {"shift": (self.channels,)}

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        draws = self.standard_normal("shift", len(inputs), training)
        return inputs if draws is None else inputs + 0.1 * draws


@bayesnorm.moments.register(Shift)
def shift_moments(layer: Shift, moments: bayesnorm.moments.Moments) -> Any:
    return moments.with_common_noise(0.01 * np.ones(layer.channels), axis=-1)


def network() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((4,)),
            bayesnorm.WeightNormalization(keras.layers.Dense(8), projection=True),
            bayesnorm.StochasticScaleNorm(prior="log_uniform", num_examples=16),
            keras.layers.ReLU(),
            keras.layers.Dense(3),
        ]
    )


def use(folder: Path) -> None:
    """Trains nothing, and looks at all that comes back."""
    model, inputs = network(), np.ones((16, 4), "float32")
    labels = np.arange(16) % 3
    prediction = bayesnorm.predict(model, inputs, samples=4, seed=0, from_logits=True)
    probs = prediction.probs
    assert probs.argmax(-1).shape == prediction.entropy.shape == (16,)
    assert_type(bayesnorm.metrics.nll(probs, labels), float)
    assert_type(bayesnorm.metrics.reliability_bins(probs, labels).edges, np.ndarray)
    temperature = bayesnorm.metrics.fit_temperature(probs, labels)
    tasks: Nest[Task] = "classification"
    bayesnorm.predict(
        bayesnorm.WeightSets(model, [model.get_weights()]),
        (inputs[i : i + 4] for i in range(0, 16, 4)),
        method="mean",
        task=tasks,
        from_logits=True,
        temperature=temperature,
    )

    several = keras.Model(model.inputs, {"a": model.outputs[0], "b": model.outputs[0]})
    # Of several outputs the predictions are in a nest, which types do not see coming.
    named: Any = bayesnorm.predict(
        several,
        inputs,
        samples=4,
        task={"a": "classification", "b": "regression"},
        from_logits={"a": True, "b": None},
    )
    assert named["b"].variance.shape == (16, 3)

    sets = bayesnorm.ConformalSets(prediction, labels, alpha=0.5, score="aps")
    assert_type(sets.sets(prediction), np.ndarray)
    assert_type(sets.summary(probs, labels)["coverage"], float)
    assert_type(bayesnorm.plots.reliability_diagram(probs, labels), Figure)

    posterior = bayesnorm.WeightSets.of([model, model])
    posterior.save(folder / "posterior.npz")
    loaded = bayesnorm.WeightSets.load(str(folder / "posterior.npz"), model)
    assert_type(loaded, bayesnorm.WeightSets)
    assert_type(loaded[:1], bayesnorm.WeightSets)
    assert_type(loaded[0], list[np.ndarray])

    splits = bayesnorm.datasets.load("digits", held_out=(8, "9"))
    assert_type(splits, bayesnorm.datasets.Splits)
    assert_type(splits.train.first(10), bayesnorm.datasets.Split)
    with bayesnorm.noise_mode("sample"):
        assert Shift()(inputs).shape == inputs.shape
    sampler = bayesnorm.samplers.ATMC(
        num_examples=16, learning_rate=bayesnorm.samplers.CyclicalCosine(0.001, 50)
    )
    assert_type(sampler.equivalent_sgd(), tuple[float, float])


def misuse(model: keras.Model, x: np.ndarray, prediction: bayesnorm.Prediction) -> None:
    """Is never called."""
    bayesnorm.predict(model, x, method="samples")  # type: ignore[arg-type]
    bayesnorm.predict(model, x, task="regresion")  # type: ignore[arg-type]
    bayesnorm.predict(model, x, sampels=30)  # type: ignore[call-arg]
    bayesnorm.predict(model, 3)  # type: ignore[arg-type]
    bayesnorm.predict(model)  # type: ignore[call-arg]
    prediction.prob  # type: ignore[attr-defined]
    prediction.probs = x  # type: ignore[misc]
    bayesnorm.predict(model, x).entropie  # type: ignore[union-attr]
    bayesnorm.calibrate(model, x, law="jiont")  # type: ignore[arg-type]
    bayesnorm.prune(model).kept  # type: ignore[attr-defined]
    bayesnorm.StochasticScaleNorm(prior="uniform")  # type: ignore[arg-type]
    bayesnorm.models.lenet5(norm="layer")  # type: ignore[arg-type]
    bayesnorm.samplers.PosteriorSamples("d", cycle_epochs="5")  # type: ignore[arg-type]
    bayesnorm.samplers.ATMC(learning_rate=0.1)  # type: ignore[call-arg]
    bayesnorm.noise_mode("samples")  # type: ignore[arg-type]
    bayesnorm.export(model, None)  # type: ignore[arg-type]
    bayesnorm.metrics.nll(x, x).mean  # type: ignore[attr-defined]
    bayesnorm.plots.reliability_diagram(x)  # type: ignore[call-arg]
