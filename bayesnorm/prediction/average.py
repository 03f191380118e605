"""The loop over the networks of a posterior, in `predict` and in a SavedModel."""

import keras
from keras import ops

from bayesnorm import backend
from bayesnorm.graph import apply
from bayesnorm.prediction.networks import run_networks, run_prefix
from bayesnorm.prediction.outputs import finish


def samples_a_pass(samples, most):
    """The number, up to `most`, that leaves the fewest places of passes empty."""
    most = min(samples, most)
    choices = range(most, most // 2, -1)
    return min(choices, key=lambda each: -samples % each)


def mean_network(model, inputs, outputs):
    """Returns what one network says, without noise, as `average_networks` does.

    To be called in the noise mode `"mean"`.

    Args:
        model: A built model.
        inputs: Its inputs, `[batch, ...]`.
        outputs: An `Output` for each output of the model.
    """
    found = []
    said = keras.tree.flatten(apply(model, inputs))
    for x, output in zip(said, outputs, strict=True):
        values, spread = finish(x, output)
        spread = ops.zeros_like(values) if spread is None else spread
        found.append((values, spread, None))
    return found


def average_networks(model, inputs, mode, samples, each, outputs, keep_samples=False):
    """Averages what the networks of a posterior say, some of them a pass.

    The last pass may have some too many, of weight 0.

    Args:
        model: A built model.
        inputs: Its inputs, `[batch, ...]`.
        mode: Function of the numbers of samples, integers `[each]`, that returns the
            context in which a pass runs, which hands these networks their draws.
        samples: Number of networks, an integer; or a scalar tensor, and `each` the same
            one: all go in one pass.
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

    passes = 1 if each is samples else -(-samples // each)
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


def average_members(member, number, outputs, keep_samples=False):
    """Averages what the members of an ensemble say, each of the same weight.

    Args:
        member: Function of the number of a member that returns what it says, as
            `average_networks` does. It is traced once.
        number: Number of members.
        outputs: As of `average_networks`.
        keep_samples: Whether to return the values of each network.

    Returns:
        What `average_networks` does, of the networks of all members: member by member
        in `samples`.
    """
    if number == 1:
        return member(0)

    def merge(state, said):
        group = [
            (mean, spread, output.task == "regression")
            for (mean, spread, _), output in zip(said, outputs, strict=True)
        ]
        return _join(state, group, 1.0)

    start = (0.0,) * (1 + 2 * len(outputs))
    (_, *averages), kept = backend.scan(
        member,
        merge,
        start,
        number,
        collect=(lambda said: [x for *_, x in said]) if keep_samples else None,
    )
    means, spreads = averages[::2], averages[1::2]
    if keep_samples:
        # From `[members, samples, batch, ...]`.
        kept = [
            ops.reshape(x, (number * x.shape[1], *ops.shape(mean)))
            for x, mean in zip(kept, means, strict=True)
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
    total = ops.sum(weights)
    weights, group = weights / total, []
    for values, spread in said:
        center = _weighted(weights, values)
        follows_variance = spread is None
        if follows_variance:
            spread = ops.square(values - center)
        group.append((center, _weighted(weights, spread), follows_variance))
    return _join(state, group, total)


def _weighted(weights, values):
    """Sums `[networks, ...]` up; in an exported graph OpenVINO takes no tensordot."""
    flat = ops.reshape(values, (ops.shape(values)[0], -1))
    return ops.reshape(ops.matmul(weights[None], flat), ops.shape(values)[1:])


def _join(state, group, total):
    """Takes a group of networks into the running means of `_merge`.

    Args:
        state: As of `_merge`.
        group: For each output its mean, its spread, and whether that is a variance.
        total: The weight of the group.
    """
    weight, *averages = state
    share = total / (weight + total)
    new = [weight + total]
    for mean, so_far, (center, spread, is_variance) in zip(
        averages[::2], averages[1::2], group, strict=True
    ):
        delta = center - mean
        so_far = so_far + share * (spread - so_far)
        if is_variance:
            so_far = so_far + share * (1.0 - share) * ops.square(delta)
        new += [mean + share * delta, so_far]
    return tuple(new)
