"""The ways to predict by a network: found here, whatever layers it has."""

import dataclasses

from bayesnorm.layers.noise import stochastic_layers
from bayesnorm.moments import check_rules


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to predict.

    Attributes:
        title: What the report calls it.
        runs: Models, or lists of models for ensembles: one for each repetition, such as
            with another seed. Figures are means over them, plots show the first.
        arguments: Those of `bayesnorm.predict`.
        short: What the columns of a comparison call it; None for the title.
        loading: Python that makes `network`, what the first run is, of the `model` that
            the run saves, in the run's folder; empty where it is that model, or is not
            saved.
    """

    title: str
    runs: list
    arguments: dict
    short: str | None = None
    loading: str = ""


MEAN = {"method": "mean"}


def sampling(samples, seed):
    """Returns the arguments of `bayesnorm.predict` for sampled networks."""
    return {"method": "sample", "samples": samples, "seed": seed}


def standard(model, samples, seed, note=print, **passes):
    """Returns the methods of a network by key.

    One pass (the means), and if layers draw noise the average over sampled networks
    and propagated moments, these if every layer has a rule.

    Args:
        model: The model.
        samples: Number of sampled networks.
        seed: Seed of the samples.
        note: Function that is given a line of text where there are no moments.
        **passes: Further arguments of `bayesnorm.predict`, such as `chunk_size`.
    """
    methods = {"one_pass": Method("one pass", [model], passes | MEAN)}
    if not stochastic_layers(model):
        return methods
    # The paper's columns are of 10 and of 30 samples.
    counts = {"averaged_10": 10} if samples > 10 else {}
    for key, count in (counts | {"averaged": samples}).items():
        arguments, title = passes | sampling(count, seed), f"average of {count} samples"
        methods[key] = Method(title, [model], arguments, f"MC-{count}")
    try:
        check_rules(model)
    except ValueError as error:
        note(f"no propagated moments: {error}")
    else:
        moments = passes | {"method": "moments"}
        methods["moments"] = Method("propagated moments", [model], moments)
    return methods


def best(methods):
    """Returns the key of the standard method that stands for a network in plots."""
    return "averaged" if "averaged" in methods else "one_pass"


def chunk_size(splits):
    """Returns how many images go through a network at a time.

    1024 of CIFAR-10's size, and of larger ones as many as have so many pixels: hidden
    activations are of the size of the images.
    """
    height, width, _ = splits.image_shape
    return max(1, min(1024, 1024 * 32 * 32 // (height * width)))
