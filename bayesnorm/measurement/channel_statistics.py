"""Channel statistics of a network's normalizations over real data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from bayesnorm.arguments import positive_integer
from bayesnorm.layers import AnalyticNormalization, WeightNormalization
from bayesnorm.streams.batches import stream
from bayesnorm.types import Inputs

_NORMALIZATIONS = (
    AnalyticNormalization,
    WeightNormalization,
    keras.layers.BatchNormalization,
)


@dataclasses.dataclass(frozen=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel, `[channels]`, float64."""

    mean: np.ndarray
    stddev: np.ndarray


def channel_statistics(
    model: keras.Model,
    images: Inputs,
    layer_names: Sequence[str] | None = None,
    batch_size: int = 256,
    steps: int | None = None,
) -> dict[str, ChannelStatistics]:
    """Measures mean and standard deviation of the channels of normalizations.

    After an ideal normalization they are 0 and 1 over the training set.

    Args:
        model: A Functional or Sequential model.
        images: The model's inputs: arrays or a stream of batches, as for
            `bayesnorm.predict`.
        layer_names: Names of layers of the model; None for all normalizations.
        batch_size: Examples at a time.
        steps: Number of the stream's batches to take, as in Keras (of arrays: batches
            of `batch_size`); None for all, which a stream without an end does not have.
            Whether a generator ends is not known beforehand: with None it is read until
            it does.

    Returns:
        A dictionary from the layer's name to its `ChannelStatistics`, in order.

    Raises:
        ValueError: If the model has no such layer, or the data are empty, not finite,
            of another shape than the model's inputs, or without an end (and
            `steps=None`).
        TypeError: If `images` are no data.
    """
    layers = [
        layer
        for layer in model.layers
        if layer.name in (layer_names or [])
        or (layer_names is None and isinstance(layer, _NORMALIZATIONS))
    ]
    missing = set(layer_names or []) - {layer.name for layer in layers}
    if missing or not layers:
        raise ValueError(
            f"Model {model.name!r} has no such layers: expected names among "
            f"{[layer.name for layer in model.layers]} (normalizations when none "
            f"are given). Received: layer_names={layer_names!r}"
        )
    positive_integer("batch_size", batch_size)
    probe = keras.Model(model.inputs, [layer.output for layer in layers])
    totals = [_Moments() for _ in layers]
    for batch in stream(images, batch_size, model, steps):
        outputs = probe.predict_on_batch(batch)
        outputs = outputs if isinstance(outputs, list) else [outputs]
        for total, output in zip(totals, outputs, strict=True):
            total.update(np.asarray(output, "float64"))
    return {
        layer.name: ChannelStatistics(total.mean, np.sqrt(total.variance))
        for layer, total in zip(layers, totals, strict=True)
    }


class _Moments:
    """Streaming mean and variance of the last axis (Chan et al., 1979)."""

    def __init__(self):
        self.count, self.mean, self.variance = 0, 0.0, 0.0

    def update(self, values):
        values = values.reshape(-1, values.shape[-1])
        weight = len(values) / (self.count + len(values))
        delta = values.mean(0) - self.mean
        self.mean = self.mean + weight * delta
        self.variance = (
            (1 - weight) * self.variance
            + weight * values.var(0)
            + weight * (1 - weight) * delta**2
        )
        self.count += len(values)
