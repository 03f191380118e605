"""Networks of keras.applications without 30 % of their filters, against masked ones.

```
python -m benchmarks.pruned_applications --output=benchmarks/results/pruned_applications
```

Of every convolution a share of the filters, drawn at random, is masked; the pruned
network is compared with one in whose weights the same filters are 0. Weights are
random; the batch normalizations have random scales and biases, and the statistics of a
random batch, so that a masked channel holds `act(beta - gamma mean / sd)`, seldom 0.
"""

import pathlib
import time

import keras
import numpy as np
from absl import app, flags

import bayesnorm
from bayesnorm.graph import layers_of
from benchmarks import timing
from trainers.flags import command
from trainers.report import tables

FAMILIES = {
    "ResNet50": 64,
    "ResNet50V2": 64,
    "DenseNet121": 64,
    "MobileNet": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "MobileNetV3Large": 64,
    "EfficientNetB0": 64,
    "EfficientNetV2B0": 64,
    "InceptionV3": 96,
    "InceptionResNetV2": 96,
    "Xception": 96,
    "NASNetMobile": 64,
    "VGG16": 64,
    "ConvNeXtTiny": 64,
}
_NETWORKS = flags.DEFINE_list("networks", list(FAMILIES), "Networks.")
_SHARE = flags.DEFINE_float("share", 0.3, "Share of the filters that is masked.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and masks.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the table.")

_BATCH = 4


def network(name, seed):
    """Returns a network of random weights, its statistics those of a random batch."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    size = FAMILIES[name]
    constructor = getattr(keras.applications, name)
    model = constructor(weights=None, input_shape=(size, size, 3), classes=10)
    norms = [
        x for x in layers_of(model) if isinstance(x, keras.layers.BatchNormalization)
    ]
    for norm in norms:
        if norm.scale:
            norm.gamma.assign(rng.uniform(0.5, 1.5, norm.gamma.shape))
        if norm.center:
            norm.beta.assign(rng.normal(0.0, 0.3, norm.beta.shape))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(_images(rng, size, 16), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def _images(rng, size, count):
    return rng.uniform(0, 255, (count, size, size, 3)).astype("float32")


def masks_of(model, share, rng):
    """Returns random masks of all convolutions that have filters of their own."""
    kinds = (keras.layers.Conv2D, keras.layers.SeparableConv2D)
    masks = {}
    for layer in model.layers:
        if isinstance(layer, kinds) and not isinstance(
            layer, keras.layers.DepthwiseConv2D
        ):
            masks[layer.name] = rng.random(layer.filters) >= share
    return masks


def mask(model, masks):
    """Zeroes the filters that masks leave out."""
    for name, kept in masks.items():
        layer = model.get_layer(name)
        separable = isinstance(layer, keras.layers.SeparableConv2D)
        kernel = layer.pointwise_kernel if separable else layer.kernel
        kernel.assign(kernel * kept.astype("float32"))


def measure(name):
    """Returns the figures of a network."""
    model = network(name, _SEED.value)
    rng = np.random.default_rng(_SEED.value + 1)
    masks = masks_of(model, _SHARE.value, rng)
    start = time.perf_counter()
    pruned, report = bayesnorm.prune(model, keep=masks)
    seconds = time.perf_counter() - start
    mask(model, masks)
    images = _images(rng, FAMILIES[name], _BATCH)
    # In front of the softmax, where outputs do not come near one another.
    expected, found = (
        np.asarray(keras.ops.convert_to_numpy(_logits(m)(images)), "float64")
        for m in (model, pruned)
    )
    masked = sum(int((~kept).sum()) for kept in masks.values())
    stayed = [x for x in report.refused]
    return {
        "error": float(np.abs(found - expected).max() / np.abs(expected).max()),
        "masked": masked,
        "channels": sum(kept.size for kept in masks.values()),
        "removed": masked - sum(count for _, count, _ in stayed),
        "parameters": report.parameters,
        "macs": report.macs,
        "refused": stayed,
        "seconds": seconds,
    }


def _logits(model):
    last = model.layers[-1]
    if getattr(last, "activation", None) is keras.activations.softmax:
        last.activation = keras.activations.linear
    return model


def table(results):
    """Returns the table of the networks."""
    head = [
        "network",
        "filters",
        "masked",
        "removed",
        "parameters, M",
        "MACs, M",
        "error",
        "prune, s",
    ]
    rows = [
        [
            name,
            str(r["channels"]),
            str(r["masked"]),
            str(r["removed"]),
            " -> ".join(f"{n / 1e6:.2f}" for n in r["parameters"]),
            " -> ".join(f"{n / 1e6:.0f}" for n in r["macs"]),
            f"{r['error']:.1e}",
            f"{r['seconds']:.0f}",
        ]
        for name, r in results.items()
    ]
    return tables.table(head, rows)


def main(argv):
    """Measures, prints and writes."""
    del argv
    results = {}
    for name in _NETWORKS.value:
        results[name] = measure(name)
        print(table({name: results[name]}), flush=True)
        keras.backend.clear_session()
    version = f"Keras {keras.__version__} on {keras.backend.backend()}"
    reasons = [
        f"- {name}: {count} channels of {layer}: {reason}"
        for name, r in results.items()
        for layer, count, reason in r["refused"]
    ]
    text = "\n".join(
        [
            "# Pruned networks of keras.applications",
            "",
            f"`{command()}`; {timing.hardware()}; {version}.",
            "",
            table(results),
            "",
            "Removed are the masked filters that nothing needs as they are. The error",
            "is the largest difference of the logits from those of the masked network,",
            "relative to the largest. What stays, and what needs it, is in `stays.md`.",
            "",
        ]
    )
    print(text)
    timing.write_report(_OUTPUT.value, text, results)
    if _OUTPUT.value:
        page = "\n".join(["# What stays", "", *reasons, ""])
        pathlib.Path(_OUTPUT.value, "stays.md").write_text(page)


if __name__ == "__main__":
    app.run(main)
