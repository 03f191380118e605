"""When more networks would change nothing: sequential tests of averaged predictions.

The S networks of an example are draws of one law, so the first n of them are a random
sample without replacement of all S. Both tests ask what the average over all S will
be. Predictions are `[networks, examples, ..., K]`; each position `...` has a test of
its own.
"""

import dataclasses

import numpy as np
from scipy import special, stats

from bayesnorm.arguments import check_number

# Looks at the examples come after multiples of it: one size of block is compiled.
BLOCK = 8
# Shares of the most that a bet may risk: some are near the best one for any gap.
_SHARES = np.array([1 / 8, 1 / 4, 1 / 2, 1], "float32")
_CAPITAL = np.float32(1e30)  # Enough, and far from overflow with what one bet gains.
# Sixteen alike are common where one network in thirty says otherwise.
_LEAST_OF_INTERVALS = 4 * BLOCK


def check_tolerance(tolerance):
    """Raises a ValueError if it is neither `"class"` nor a number above 0."""
    if isinstance(tolerance, str) and tolerance == "class":
        return
    try:
        check_number("tolerance", tolerance, positive=True)
    except ValueError:
        raise ValueError(
            "`tolerance` must be 'class' (the class that all samples would give), or a "
            "number above 0: of the entropy in nats, of a regression in the units of "
            f"its outputs. Received: tolerance={tolerance!r}"
        ) from None


def check_error_rate(error_rate):
    """Raises a ValueError if a share of examples does not lie in (0, 1)."""
    check_number("error_rate", error_rate, positive=True)
    if error_rate >= 1:
        raise ValueError(
            "`error_rate` must lie between 0 and 1: it is a share of the examples. "
            f"Received: error_rate={error_rate!r}"
        )


def rule_for(output, tolerance, error_rate, samples, temperature=1.0):
    """Returns the test of an output.

    Args:
        output: The `Output`.
        tolerance: `"class"` or a number, as of `predict`.
        error_rate: As of `predict`.
        samples: Number `S` of networks.
        temperature: That of the averaged prediction, which entropies are of.

    Raises:
        ValueError: If a regression is asked for its class.
    """
    check_tolerance(tolerance)
    check_error_rate(error_rate)
    if tolerance != "class":
        return Interval(output.task, tolerance, error_rate, samples, temperature)
    if output.task == "regression":
        name = "" if output.name is None else f" {output.name!r}"
        raise ValueError(
            f"tolerance='class', but output{name} is a regression, which has no "
            "classes. Pass a number, in the units of the output: its mean is settled "
            "when that over all samples is within it."
        )
    return Winner(error_rate, samples)


def looks(samples, least):
    """Returns after how many networks to look, the last time after all.

    In multiples of `BLOCK`, steps grow to a third or a half of what there is: an
    example gets few networks more than it needs, and few batches wait at a time.

    Args:
        samples: Number of networks.
        least: The fewest that can settle an example.
    """
    found, n = [], BLOCK
    while n < samples:
        if n >= least:
            found.append(n)
        n += max(BLOCK, 1 << (n.bit_length() - 2))
    return [*found, samples]


@dataclasses.dataclass(frozen=True)
class Winner:
    """Tests which class will have the highest mean over all S networks.

    A class b is tested by a bet against it. Were b to win, `sum_i p_i[a] - p_i[b] <= 0`
    over all S networks for every a. Given those before it, the k-th difference
    `d = p_k[a] - p_k[b]`, of the class a that led them, b apart, then has a mean of no
    more than `m = -sum_{i<k} (p_i[a] - p_i[b]) / (S - k + 1)`, and each capital
    `prod_k (1 + f (d_k - m_k) / (1 + m_k))`, f in (0, 1], is a nonnegative
    supermartingale, as is their mean over several f. By Ville's inequality it ever
    reaches `1 / error_rate` with a probability of `error_rate` at most: b is then
    rejected. Where `m < -1`, b cannot win. An example is settled once all classes but
    the leader are. So for any law of the networks, and however often one looks, the
    class differs from that of all S with a probability of at most `error_rate`: the one
    class that wins is rejected no more often.

    Reference:
        Waudby-Smith & Ramdas, 2020, "Confidence sequences for sampling without
        replacement"; Waudby-Smith & Ramdas, 2024, "Estimating means of bounded random
        variables by betting".
    """

    error_rate: float
    samples: int

    @property
    def least(self):
        """The fewest networks that can settle an example: all of them certain."""
        certain, state = np.array([1.0, 0.0], "float32"), self.start((1, 2))
        for n in range(self.samples):
            self.update(state, certain[None, None], n, self.error_rate)
            if self.unsettled(state).sum() == 0:
                return n + 1
        return self.samples

    def start(self, shape):
        """Returns the state of examples `[examples, ..., K]` before any network."""
        return {
            "sum": np.zeros(shape, "float64"),
            "capital": np.ones((*shape, len(_SHARES)), "float32"),
            "rejected": np.zeros(shape, bool),
        }

    def update(self, state, values, before, error_rate):
        """Takes networks `[networks, examples, ..., K]`, `before` those so far."""
        total, capital, rejected = state["sum"], state["capital"], state["rejected"]
        for k, p in enumerate(values):
            if before + k:
                rival = _rivals(total)
                left = self.samples - before - k
                ahead = np.take_along_axis(total, rival, -1) - total
                most = -ahead / left  # Of the mean of those left, if the class wins.
                gap = np.take_along_axis(p, rival, -1) - p
                rejected |= most < -1 - 1e-6
                # Within rounding of -1 nothing is known until the next network.
                room = np.where(1 + most > 1e-6, 1 + most, np.inf)
                growth = np.maximum((gap - most) / room, -1)[..., None]
                capital *= (1 + _SHARES * growth).astype("float32")
                np.minimum(capital, _CAPITAL, out=capital)
                rejected |= capital.mean(-1) >= 1 / error_rate
            total += p

    def unsettled(self, state):
        """Returns for each position whether it is not settled, `[examples, ...]`."""
        leader = state["sum"].argmax(-1)[..., None] == np.arange(state["sum"].shape[-1])
        return ~(state["rejected"] | leader).all(-1)


def _rivals(total):
    """Returns for each class the best of the others, `[..., K]` indices."""
    leader = total.argmax(-1)[..., None]
    classes = np.arange(total.shape[-1])
    second = np.where(classes == leader, -np.inf, total).argmax(-1)[..., None]
    return np.where(classes == leader, second, leader)


@dataclasses.dataclass(frozen=True)
class Interval:
    """Tests whether entropy or mean of all S networks are within `tolerance`.

    A position is settled when

        t sqrt(v / n (1 - n / S)) + D log(2 L / error_rate) / (3 n) (1 - n / S)
            + I (1 / n - 1 / S) <= tolerance:

    the standard error of what n networks say of all S, times the quantile of Student's
    t at `error_rate / (2 L)`, L the number of looks; Bernstein's term for a skewed law,
    D the largest deviation of a network seen; and the second-order bias of the entropy,
    I the mutual information. v is the variance of the influence of a network: of a
    regression's mean its output, of the entropy `sum_k p_k dH/dp_k` at the mean, the
    delta method (at a temperature of 1 the cross-entropy with the mean). It is pooled
    over blocks of `BLOCK` networks, each at the mean by its end. It knows nothing of
    rare networks: where one in a hundred says otherwise, the first 32 may well agree.

    Reference:
        Cochran, 1977, "Sampling Techniques", 2.6 (the finite population). Bernstein's
        inequality as in Maurer & Pontil, 2009, "Empirical Bernstein Bounds and Sample
        Variance Penalization". Miller, 1955, "Note on the bias of information
        estimates".
    """

    task: str
    tolerance: float
    error_rate: float
    samples: int
    temperature: float = 1.0
    least = _LEAST_OF_INTERVALS

    def start(self, shape):
        """Returns the state of examples `[examples, ...]` before any network."""
        positions = shape if self.task == "regression" else shape[:-1]
        return {
            "sum": np.zeros(shape, "float64"),
            "squares": np.zeros(positions, "float64"),
            "largest": np.zeros(positions, "float64"),
            "entropy": np.zeros(positions, "float64"),
            "width": np.full(positions, np.inf),
        }

    def update(self, state, values, before, error_rate):
        """Takes networks `[networks, examples, ...]`, `before` those so far."""
        n = before + len(values)
        values = values.astype("float64")
        state["sum"] += values.sum(0)
        mean = state["sum"] / n
        pull, bias = values, 0.0
        if self.task != "regression":
            pull = influence(values, mean, self.temperature)
            state["entropy"] += special.entr(values).sum((0, -1))
            information = special.entr(mean).sum(-1) - state["entropy"] / n
            bias = np.maximum(information, 0) * (1 / n - 1 / self.samples)
        pull = pull - pull.mean(0)
        state["squares"] += np.square(pull).sum(0)
        np.maximum(state["largest"], np.abs(pull).max(0), out=state["largest"])
        free = n - -(-n // BLOCK)  # A mean of its own for each block.
        if not free:
            return
        variance = state["squares"] / free
        number = max(1, len(looks(self.samples, self.least)) - 1)
        quantile = stats.t.isf(error_rate / (2 * number), free)
        left = 1 - n / self.samples
        skew = state["largest"] * np.log(2 * number / error_rate) / (3 * n) * left
        state["width"][...] = quantile * np.sqrt(variance / n * left) + skew + bias

    def unsettled(self, state):
        """Returns for each position whether it is not settled, `[examples, ...]`."""
        return ~(state["width"] <= self.tolerance)


def influence(values, mean, temperature=1.0):
    """The influence of networks on the entropy of their average, up to a constant.

    `sum_k p_k dH/dm_k`, with H the entropy of `q = m^(1/T) / sum m^(1/T)`:
    `dH/dm_k = -q_k (log q_k + H) / (T m_k)`.

    Args:
        values: Probabilities `[networks, ..., K]`.
        mean: Their mean `[..., K]`.
        temperature: T.

    Returns:
        `[networks, ...]`, nats.
    """
    tiny = np.finfo("float32").tiny
    logs = np.log(np.maximum(mean, tiny))
    log_q = special.log_softmax(logs / temperature, axis=-1)
    q = np.exp(log_q)
    entropy = -(q * log_q).sum(-1, keepdims=True)
    slope = -np.exp(log_q - logs) * (log_q + entropy) / temperature
    return (values * slope).sum(-1)


def split_rate(error_rate, positions):
    """Shares an error rate between wrong tests and positions without an answer.

    Args:
        error_rate: The share of positions that may differ from those of all networks.
        positions: Number of positions of an example.

    Returns:
        `(rate, share)`: the rate of each position's test, and the share of positions
        that may be unsettled when an example leaves.
    """
    return (error_rate, 0.0) if positions == 1 else (error_rate / 2, error_rate / 2)
