"""Predictions averaged over the networks of a posterior."""

import dataclasses

import numpy as np

from bayesnorm.arguments import check_choice, positive_integer, seed_integer
from bayesnorm.measurement.minibatch import record_statistics
from bayesnorm.prediction.batches import Padding, check_one_shape
from bayesnorm.prediction.engine import Ensemble, Plan
from bayesnorm.prediction.members import members_of
from bayesnorm.prediction.networks import check_any_batch
from bayesnorm.prediction.prediction import Prediction
from bayesnorm.streams.arrays import rows_of
from bayesnorm.streams.batches import number_of_batches, stream
from bayesnorm.streams.progress import Progress

_METHODS = ("sample", "mean", "moments", "minibatch")


def predict(
    model,
    x,
    samples=30,
    method="sample",
    batch_size=256,
    seed=None,
    keep_samples=False,
    from_logits=None,
    task="classification",
    chunk_size=None,
    verbose="auto",
    train_data=None,
    train_batch_size=None,
    steps=None,
):
    """Predicts with the networks of a posterior, and says how far they agree.

    Classification averages the probabilities p of the networks (never logits or
    log-probabilities) and splits the entropy of the average, H(mean p), into the
    mean entropy of a network and their mutual information with the label,
    `H(mean p) - mean H(p)`. A single output is a yes-or-no question and gives
    two classes, "no" and "yes".

    A model of several outputs gives the nest of their predictions, a dict by output
    name where the model gives a list; all are of the same sampled networks.

    The methods are:

    - `"sample"`: Monte Carlo. A sample is one network: its noise is drawn once,
      a function of the seed, the number of the sample and the place of the layer
      in the model alone, and shared by all examples. So a seed gives the same
      prediction whatever the batches. The part of the model before the first
      noise is computed once for all samples.
    - `"minibatch"`: as `"sample"`, but stochastic batch normalizations take the
      joint statistics of a real training batch for each sample (MCBN), which the
      draws of `"sample"` approximate independently for each layer and channel.
      Slower, by the passes of these batches, and in need of `train_data`.
    - `"mean"`: one pass of the network of mean weights.
    - `"moments"`: one pass that propagates means and variances through the
      layers (`bayesnorm.moments`), then takes the mean of the softmax of
      Gaussian logits. Its mutual information is approximate: the smaller of the
      expansion to the second order, `sum(var p / mean p) / 2`, right where the
      networks nearly agree, and that of the Dirichlet distribution of the same
      mean and total variance, right where they do not (for two classes the latter
      alone). Channels are taken as independent: behind trained convolutions, where
      the same draws reach all of them, it was 0.3 to 0.6 of the sampled one on five
      small networks, and 0.55 to 2.8 of it on untrained ones of `keras.applications`,
      so take its level from `"sample"`.

    Args:
        model: A Keras model, or an ensemble: `bayesnorm.WeightSets`, or a list of
            models and these. The average is over members, each of the same weight,
            and their samples. Members of one architecture are compiled once.
        x: Inputs: an array, a nest of arrays for a model of several inputs, or
            a stream of batches of any length: a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or an iterable; of an element that is a tuple or a
            list, as in `(inputs, labels)`, the first entry counts. Batches may differ
            in the shape of their examples (lengths, image sizes) where the model takes
            them and its outputs have one shape.
        samples: Number of networks, of an ensemble for each member.
        method: `"sample"`, `"minibatch"`, `"mean"` or `"moments"`.
        batch_size: Examples at a time, whatever the batches of `x`.
        seed: Integer from 0; None for new draws at each call.
        keep_samples: Whether to return what each network says, too.
        from_logits: Whether a classifier's outputs are logits; None to read it
            off its last activation, or else off the loss the model was compiled with.
            For several outputs also one for each, as `task`.
        task: `"classification"`; `"multilabel"` for outputs that are independent
            yes-or-no labels, each with its probability, entropy and mutual
            information; `"regression"` for mean and variance of the outputs. For
            several outputs also one for each: a dict by output name, or the nest of
            the outputs.
        chunk_size: Rows (samples times examples) of one pass through the network,
            which bounds the memory; at least the batch. None: 1024 or the batch, but
            no more than take about 1 GiB above the model, its inputs and the result,
            by the sizes of all tensors of the network for one such example; where these
            are large, fewer examples than `batch_size` go in at a time.
        verbose: Whether to show a progress bar; `"auto"`: on a terminal.
        train_data: For `"minibatch"`: the training inputs, arrays (gone through in a
            random order, which follows from the seed) or a stream with enough batches,
            of which no more are read than samples need.
        train_batch_size: For `"minibatch"`: what the network was trained with. None
            for that of its calibration, or else of the stream; 32 for arrays.
        steps: Number of the batches of `x` to take, as in Keras (of arrays: batches of
            `batch_size`); None for all, which a stream without an end does not have.
            Whether a generator ends is not known beforehand: with None it is read until
            it does.

    Returns:
        A `Prediction`, or a nest of them. The variance of a regression is that over
        the networks (with `samples - 1` in the denominator), 0 for a single one; with
        `"moments"` it is the propagated one. It does not contain the noise of the
        observations, of which a plain regression knows nothing. The samples of an
        ensemble come member by member.

    Raises:
        ValueError: If an argument is not as above, the data are empty, not finite
            or of another shape than the model's inputs, or without an end (and
            `steps=None`), or the outputs are not finite or of different shapes.
        TypeError: If `x` is no data.

    Reference:
        Houlsby et al., 2011, "Bayesian Active Learning for Classification and
        Preference Learning" (the mutual information). Teye et al., 2018, "Bayesian
        Uncertainty Estimation for Batch Normalized Deep Networks" (`"minibatch"`, in
        which the statistics of the sampled batch replace the moving averages).
    """
    check_choice("method", method, _METHODS)
    samples = positive_integer("samples", samples)
    batch_size = positive_integer("batch_size", batch_size)
    if chunk_size is not None:
        chunk_size = positive_integer("chunk_size", chunk_size)
    seed = seed_integer(seed)
    members = members_of(model)
    for each in {id(m.model): m.model for m in members}.values():
        check_any_batch(each)
    if keep_samples and method == "moments":
        raise ValueError(
            "method='moments' draws no samples to keep. Pass keep_samples=False, or "
            "method='sample'."
        )
    if method == "minibatch" and train_data is None:
        raise ValueError("method='minibatch' needs training inputs: pass train_data=.")

    def statistics(i, member):
        if method != "minibatch":
            return None
        return record_statistics(
            member.model,
            train_data,
            samples,
            train_batch_size,
            (seed + i) % 2**32,
            weights=member.weights,
        )

    plan = Plan(method, samples, batch_size, chunk_size, keep_samples, seed)
    ensemble = Ensemble(members, plan, task, from_logits, statistics)
    parts, done, padded = [], 0, Padding(batch_size)
    for batch in stream(x, batch_size, members[0].model, steps, ensemble.most_examples):
        rows = rows_of(batch)
        if not parts:
            number = number_of_batches(x, batch_size, steps, rows)
            progress = Progress(number, verbose)
            if method == "sample":
                ensemble.warn_deterministic()
        parts.append(ensemble.run(padded(batch), rows))
        for first, part, output in zip(
            parts[0], parts[-1], ensemble.outputs.each, strict=True
        ):
            _check_outputs(part, output, done)
            check_one_shape(_values(first), _values(part), done)
        done += rows
        progress.update(len(parts))
    progress.finish()
    return ensemble.outputs.pack([_join(pieces) for pieces in zip(*parts, strict=True)])


def _join(parts):
    def joined(name):
        arrays = [getattr(part, name) for part in parts]
        if arrays[0] is None:
            return None
        return np.concatenate(arrays, axis=1 if name == "samples" else 0)

    return Prediction(
        **{field.name: joined(field.name) for field in dataclasses.fields(Prediction)}
    )


def _values(part):
    return part.mean if part.probs is None else part.probs


def _check_outputs(part, output, done):
    values = _values(part)
    if np.isfinite(values).all():
        return
    bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
    raise ValueError(
        ("The outputs" if output.name is None else f"Output {output.name!r}")
        + f" for example {done + int(bad.argmax())} are not finite"
        + (
            ". Expected finite outputs: the model's weights may have diverged."
            if part.probs is None
            else ", or not probabilities where from_logits=False. Pass "
            "from_logits=True if the model ends without a softmax or sigmoid; else "
            "its weights may have diverged."
        )
    )
