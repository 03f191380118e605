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


def average_networks(model, inputs, mode, samples, each, kind, keep_samples=False):
    """Averages what the networks of a posterior say, some of them a pass.

    The last pass may have some too many, of weight 0.

    Args:
        model: A built model with one output.
        inputs: Its inputs, `[batch, ...]`.
        mode: Function of the numbers of samples, integers `[each]`, that returns the
            context in which a pass runs, which hands these networks their draws.
        samples: Number of networks.
        each: Networks of a pass, an integer or a scalar tensor.
        kind: The `from_logits` of a classifier's outputs, None for a regression.
        keep_samples: Whether to return the values of each network.

    Returns:
        `(values, spread, samples)`, float32: mean probabilities
        `[batch, ..., classes]` and mean entropy of a network `[batch, ...]`, or mean
        and variance (`samples` in the denominator) of the outputs; and the values
        `[samples, batch, ...]` of each network, or None.
    """
    prefix = run_prefix(model, inputs)

    def one_pass(state, i):
        numbers = i * each + ops.arange(each)
        weights = ops.cast(numbers < samples, "float32")
        with mode(ops.minimum(numbers, samples - 1)):
            outputs = run_networks(model, inputs, prefix, each)
        values, spread = (
            None if y is None else ops.reshape(y, (each, -1, *ops.shape(y)[1:]))
            for y in finish(outputs, kind)
        )
        state = _merge(state, values, spread, weights)
        return state, values if keep_samples else None

    passes = -(-samples // each)
    (_, mean, spread), values = backend.scan(
        one_pass, (0.0, 0.0, 0.0), passes, collect=keep_samples
    )
    if keep_samples:
        shape = ops.shape(mean)
        values = ops.reshape(values, (-1, *shape))[:samples]
        values = ops.reshape(values, (samples, *shape))  # A number, not a tensor.
    return mean, spread, values


def _merge(state, values, spread, weights):
    """Takes networks into running means over networks.

    Args:
        state: `(weight, mean, spread)` so far, zeros at the start.
        values: `[networks, ...]`, probabilities or outputs.
        spread: `[networks, ...]`, entropies of the networks; None to follow the
            variance of `values`.
        weights: `[networks]`, not all zero.

    Returns:
        The new state: `spread` is the mean entropy, or the variance.

    Reference:
        Chan et al., 1979, "Updating formulae and a pairwise algorithm for
        computing sample variances".
    """
    weight, mean, so_far = state
    total = ops.sum(weights)
    weights = weights / total
    center = ops.tensordot(weights, values, 1)
    follows_variance = spread is None
    if follows_variance:
        spread = ops.square(values - center)
    share = total / (weight + total)
    delta = center - mean
    so_far = so_far + share * (ops.tensordot(weights, spread, 1) - so_far)
    if follows_variance:
        so_far = so_far + share * (1.0 - share) * ops.square(delta)
    return weight + total, mean + share * delta, so_far
