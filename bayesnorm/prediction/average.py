"""The loop over the networks of a posterior, in `predict` and in a SavedModel."""

from keras import ops

from bayesnorm import backend
from bayesnorm.prediction.networks import run_networks, run_prefix
from bayesnorm.prediction.outputs import finish


def samples_a_pass(samples, most):
    """The number, up to `most`, that leaves the fewest places of passes empty."""
    most = min(samples, most)
    choices = range(most, most // 2, -1)
    return min(choices, key=lambda each: -samples % each)


def average_networks(model, inputs, mode, samples, each, outputs, keep_samples=False):
    """Averages what the networks of a posterior say, some of them a pass.

    The last pass may have some too many, of weight 0.

    Args:
        model: A built model.
        inputs: Its inputs, `[batch, ...]`.
        mode: Function of the numbers of samples, integers `[each]`, that returns the
            context in which a pass runs, which hands these networks their draws.
        samples: Number of networks.
        each: Networks of a pass, an integer or a scalar tensor.
        outputs: An `Output` for each output of the model.
        keep_samples: Whether to return the values of each network.

    Returns:
        For each output `(values, spread, samples)`, float32: the mean of the values of
        `finish`; the mean of their entropies, or of a regression their variance
        (`samples` in the denominator); and the values `[samples, batch, ...]` of each
        network, or None.
    """
    prefix = run_prefix(model, inputs)

    def one_pass(i):
        numbers = i * each + ops.arange(each)
        weights = ops.cast(numbers < samples, "float32")
        with mode(ops.minimum(numbers, samples - 1)):
            said = run_networks(model, inputs, prefix, each)
        said = [
            [
                None if y is None else ops.reshape(y, (each, -1, *ops.shape(y)[1:]))
                for y in finish(x, output)
            ]
            for x, output in zip(said, outputs, strict=True)
        ]
        return said, weights

    passes = -(-samples // each)
    start = (0.0,) * (1 + 2 * len(outputs))
    (_, *averages), kept = backend.scan(
        one_pass,
        lambda state, produced: _merge(state, *produced),
        start,
        passes,
        collect=_values if keep_samples else None,
    )
    means, spreads = averages[::2], averages[1::2]
    if keep_samples:
        kept = [
            _first(values, samples, ops.shape(mean))
            for values, mean in zip(kept, means, strict=True)
        ]
    return list(zip(means, spreads, kept or [None] * len(means), strict=True))


def _values(produced):
    said, _ = produced
    return [values for values, _ in said]


def _first(values, samples, shape):
    """From `[passes, each, ...]` to the first `samples` of the networks."""
    values = ops.reshape(values, (-1, *shape))[:samples]
    return ops.reshape(values, (samples, *shape))  # A number, where `each` is a tensor.


def _merge(state, said, weights):
    """Takes networks into running means over networks.

    Args:
        state: `(weight, mean, spread, mean, spread, ...)` so far, zeros at the start.
        said: For each output `(values, spread)`: `[networks, ...]`, probabilities or
            numbers; `[networks, ...]`, entropies of the networks, or None to follow
            the variance of the values.
        weights: `[networks]`, not all zero.

    Returns:
        The new state: a spread is the mean entropy, or the variance.

    Reference:
        Chan et al., 1979, "Updating formulae and a pairwise algorithm for
        computing sample variances".
    """
    weight, *averages = state
    total = ops.sum(weights)
    weights, share = weights / total, total / (weight + total)
    new = [weight + total]
    for mean, so_far, (values, spread) in zip(
        averages[::2], averages[1::2], said, strict=True
    ):
        center = ops.tensordot(weights, values, 1)
        follows_variance = spread is None
        if follows_variance:
            spread = ops.square(values - center)
        delta = center - mean
        so_far = so_far + share * (ops.tensordot(weights, spread, 1) - so_far)
        if follows_variance:
            so_far = so_far + share * (1.0 - share) * ops.square(delta)
        new += [mean + share * delta, so_far]
    return tuple(new)
