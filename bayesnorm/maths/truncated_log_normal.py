"""The truncated log-normal scale of structured Bayesian pruning.

`x = log(theta) ~ Normal(mean, stddev^2)` truncated to `[LOW, HIGH] = [-20, 0]`, under
the log-uniform prior: x uniform on the same interval. All functions are accurate in
float32, and have finite gradients, on the box `mean in MEAN_RANGE`, `log_stddev in
LOG_STDDEV_RANGE`, where the textbook forms (differences of the normal distribution
function) underflow to 0 / 0: there the mean may lie 1e10 standard deviations outside
the interval.

What is an expectation is a Gauss-Legendre sum over the part of the interval that
carries mass; what is a draw solves an equation in the log of the nearer tail.

Reference:
    Neklyudov et al., 2017, "Structured Bayesian Pruning via Log-Normal Multiplicative
    Noise", arXiv:1705.07283, for the model.
"""

from typing import Any, NamedTuple

from keras import ops

from bayesnorm.maths.gaussian import cdf, legendre_nodes

LOW, HIGH = -20.0, 0.0
MEAN_RANGE = (-20.0, 5.0)
LOG_STDDEV_RANGE = (-20.0, 5.0)

_NODES = 32
# The window ends where the density has fallen by exp(-20).
_DEPTH = 20.0
# Above it exp overflows float32; what it multiplies is 0 there.
_LARGE = 80.0
# A probability below it is taken for it: 12.7 standard deviations out.
_TINY = 1e-37
_NEWTON_STEPS = 4
# `(z + 3) (1 / R(z) - z)` in powers of `(z - 3) / (z + 3)`, R the Mills ratio, on
# z >= 0: a least-squares fit of our own, reweighted toward the smallest maximum;
# relative error 4e-8.
_HAZARD = (
    1.698591888,
    -0.8415380772,
    0.01716646925,
    0.1856779872,
    -0.0254784121,
    -0.05445384728,
    0.007919639873,
    0.01774858407,
    -0.001489211049,
    -0.005113450497,
    0.0001164280258,
    0.0008520181016,
)


class _Law(NamedTuple):
    """A rule of quadrature for the law of x, `[..., nodes]` where `axis` is said.

    With `t = (x - origin) / stddev` the density of t is proportional to
    `exp(-psi)`, `psi = t^2 / 2 + tilt t`, which is 0 at its highest point, t = 0.
    """

    origin: Any
    stddev: Any
    tilt: Any
    left: Any  # from the origin to LOW, in standard deviations
    whole: Any  # the interval, in standard deviations
    window: Any  # the part of it that carries mass
    t: Any  # nodes, axis
    height: Any  # the average of psi over the window
    excess: Any  # psi - height, axis
    mass: Any  # log1p of what multiplies `window exp(-height)` to give the integral
    p: Any  # probabilities of the nodes, axis


def _reach(c):
    """The t > 0 with `t^2 / 2 + c t = _DEPTH`, without cancellation."""
    root = ops.sqrt(ops.square(c) + 2.0 * _DEPTH)
    return ops.where(
        c > 0.0,
        2.0 * _DEPTH / (root + ops.maximum(c, 0.0)),
        root - ops.minimum(c, 0.0),
    )


def _law(mean, log_stddev):
    stddev = ops.exp(log_stddev)
    origin = ops.clip(mean, LOW, HIGH)
    tilt = (origin - mean) / stddev
    left, right = (origin - LOW) / stddev, (HIGH - origin) / stddev
    below = ops.minimum(left, _reach(ops.maximum(-tilt, 0.0)))
    # Two standard deviations more: the peak of the integrand of E[theta^2].
    above = ops.minimum(right, _reach(ops.maximum(tilt, 0.0) - 2.0 * stddev))
    window = below + above
    nodes, weights = legendre_nodes(_NODES)
    nodes, weights = (ops.convert_to_tensor(v, mean.dtype) for v in (nodes, weights))
    t = window[..., None] * nodes - below[..., None]
    psi = t * (0.5 * t + tilt[..., None])
    height = ops.sum(weights * psi, axis=-1)
    excess = psi - height[..., None]
    surplus = ops.sum(weights * ops.expm1(-excess), axis=-1)
    p = weights * ops.exp(-excess) / (1.0 + surplus[..., None])
    mass = ops.log1p(surplus)
    return _Law(
        origin, stddev, tilt, left, left + right, window, t, height, excess, mass, p
    )


def kl_to_log_uniform(mean, log_stddev):
    """KL of the truncated log-normal law to the log-uniform prior on `[e^-20, 1]`.

    With `al = (LOW - mean) / stddev`, `be = (HIGH - mean) / stddev` and `Z = Phi(be)
    - Phi(al)` it is `log(20 / stddev) - log Z - log(2 pi e) / 2 - (al phi(al) - be
    phi(be)) / (2 Z)`, computed as `log 20 + E[log q(x)]` by quadrature. Float32, on
    the box: 1e-4 relative or 1e-5 absolute.

    Args:
        mean: Tensor, mean of the normal law before truncation.
        log_stddev: Tensor of the same shape, log of its standard deviation.

    Returns:
        Tensor of the same shape, in nats, from 0 up.

    Reference:
        Neklyudov et al., 2017, arXiv:1705.07283, section 3.3, for the closed form.
    """
    law = _law(mean, log_stddev)
    return ops.log(law.whole / law.window) - law.mass - ops.sum(law.p * law.excess, -1)


def expected_value(mean, log_stddev):
    """`E[theta]`, of the law of `kl_to_log_uniform`; in `[e^-20, 1]`.

    `exp(mean + stddev^2 / 2) (Phi(be - stddev) - Phi(al - stddev)) / Z`, by
    quadrature. Float32, on the box: 2e-6 relative.
    """
    law = _law(mean, log_stddev)
    x = law.stddev[..., None] * law.t
    center = ops.sum(law.p * x, axis=-1)
    # Less 1: of a narrow law, the probabilities' gradients cancel to nothing else.
    growth = ops.expm1(x - center[..., None])
    return ops.exp(law.origin + center) * (1.0 + ops.sum(law.p * growth, axis=-1))


def signal_to_noise(mean, log_stddev):
    """`E[theta] / sqrt(Var[theta])`, of the law of `kl_to_log_uniform`.

    By quadrature, relative to the average of x, so that nothing cancels where the
    law is narrow. Float32, on the box: 1e-6 relative, whatever the size, from 0.03
    to 1e17.
    """
    law = _law(mean, log_stddev)
    x = law.stddev[..., None] * law.t
    relative = ops.expm1(x - ops.sum(law.p * x, axis=-1, keepdims=True))
    # In units of the window's width, as small as 1e-17: its square must not occur,
    # nor, as in the gradient of a quotient, before what it multiplies is small.
    width = law.stddev * law.window
    scaled = relative * (1.0 / width)[..., None]
    average = ops.sum(law.p * scaled, axis=-1)
    variance = ops.sum(law.p * ops.square(scaled - average[..., None]), axis=-1)
    top, spread = 1.0 + width * average, ops.sqrt(variance)
    # The gradient goes by the logarithm: the quotient's own overflows on the way.
    log_ratio = ops.log(top) - ops.log(width) - ops.log(spread)
    return ops.stop_gradient(top / (width * spread)) * ops.exp(
        log_ratio - ops.stop_gradient(log_ratio)
    )


def log_evidence_ratio(mean, log_stddev):
    """Log evidence gained by a prior that holds theta at (next to) zero, in nats.

    Bayesian model reduction: had the prior been `p~` in place of `p`, the evidence
    would be `E_q[p~ / p]` times as large. For a `p~` that concentrates at the least
    theta that the posterior knows, `exp(LOW)`, the expectation becomes the
    posterior's density there over the prior's (Savage and Dickey's ratio):

    `log(20 q(x = LOW)) = log(20 / stddev) - al^2 / 2 - log(2 pi) / 2 - log Z`.

    From 0 up the reduced model is the better one: prune. The limit is taken exactly;
    theta = 0 itself has density 0 under p and q both, and no ratio. Where q is all
    but the prior the ratio is all but 0, its sign that of `-10 - mean`: a tie, not a
    finding.

    Args:
        mean: Tensor, mean of the normal law before truncation.
        log_stddev: Tensor of the same shape, log of its standard deviation.

    Returns:
        Tensor of the same shape, at most 23 on the box. Float32: 1e-6 relative or 5e-6
        absolute.

    Reference:
        Wright, Igel & Selvan, 2024, "BMRS: Bayesian Model Reduction for Structured
        Pruning", arXiv:2406.01345: their BMRS_N, whose reduced prior is a truncated
        log-normal of standard deviation 1e-6 at LOW, in the limit of 0. Their code
        leaves out the `-log(2 pi) / 2` and is larger by 0.92 nats, with which what is
        all but the prior is pruned; its squares of 4e14 cancel to 0.1 nats.
    """
    law = _law(mean, log_stddev)
    fall = law.left * (0.5 * law.left - law.tilt)
    return ops.log(law.whole / law.window) + law.height - law.mass - fall


def _excess_hazard(z):
    """`1 / R(z) - z`, R the Mills ratio of the normal law, for z >= 0; about 1 / z."""
    y = (z - 3.0) / (z + 3.0)
    value = _HAZARD[-1] * ops.ones_like(y)
    for coefficient in _HAZARD[-2::-1]:
        value = value * y + coefficient
    return value / (z + 3.0)


class _Tail(NamedTuple):
    """The normal law beyond c >= 0 standard deviations, seen from there."""

    c: Any
    excess: Any  # of the hazard over c
    hazard: Any

    @classmethod
    def at(cls, c):
        excess = _excess_hazard(c)
        return cls(c, excess, c + excess)

    def gain(self, s):
        """Hazard at c + s less that at c, s >= 0, without cancellation."""
        return s + (_excess_hazard(self.c + s) - self.excess)

    def log_survival(self, s):
        """Log of the probability to lie beyond c + s, of what lies beyond c; <= 0."""
        return -s * (self.c + 0.5 * s) - ops.log1p(self.gain(s) / self.hazard)

    def inverse(self, log_survival):
        """The s of `log_survival`, by Newton's method."""
        aim = -log_survival
        # The survival without the Mills ratios; s is at most that.
        root = ops.sqrt(ops.square(self.c) + 2.0 * aim)
        s = 2.0 * aim / (self.c + root + 1e-20)
        for _ in range(_NEWTON_STEPS):
            gain = self.gain(s)
            error = s * (self.c + 0.5 * s) + ops.log1p(gain / self.hazard) - aim
            s = ops.maximum(s - error / (self.hazard + gain), 0.0)
        return s


def quantile(mean, log_stddev, z):
    """Returns x, log(theta), at the probability `Phi(z)`: a draw if z is normal.

    It has the reparametrized gradient in `mean` and `log_stddev` (none in z): with
    `s = (x - mean) / stddev` and `e_c = phi(c) / phi(s)`

    `dx/dmean = 1 - Phi(-z) e_al - Phi(z) e_be`,
    `dx/dlog_stddev = stddev (s - Phi(-z) al e_al - Phi(z) be e_be)`.

    A normal number in place of a uniform one keeps both tails: a float32 next below 1
    is 1 - 6e-8.

    Args:
        mean: Tensor `[...]`, mean of the normal law before truncation.
        log_stddev: Tensor `[...]`, log of its standard deviation.
        z: Tensor `[batch, ...]` or `[...]`, finite.

    Returns:
        Tensor of the shape of z, in `[-20, 0]`. Float32, on the box: 2e-5 standard
        deviations of the law.
    """
    still_mean, still_log_stddev, z = (
        ops.stop_gradient(ops.convert_to_tensor(v)) for v in (mean, log_stddev, z)
    )
    x, by_mean, by_log_stddev = _quantile(still_mean, still_log_stddev, z)
    # 0 in value: the implicit function's derivatives, for any backend's tape.
    return (
        x
        + by_mean * (mean - still_mean)
        + by_log_stddev * (log_stddev - still_log_stddev)
    )


def _quantile(mean, log_stddev, z):
    """Returns x and its derivatives; `mean` and `log_stddev` broadcast to z."""
    stddev = ops.exp(log_stddev)
    al, be = (LOW - mean) / stddev, (HIGH - mean) / stddev
    whole = (HIGH - LOW) / stddev
    lower, upper = cdf(z), cdf(-z)  # of theta, below and above
    over, under = mean > HIGH, mean < LOW
    inside = ops.logical_not(ops.logical_or(over, under))

    # Outside: the tail beyond the edge next to the mean, cut at the other one.
    near, far = ops.where(over, upper, lower), ops.where(over, lower, upper)
    tail = _Tail.at(ops.maximum(ops.maximum(al, -be), 0.0))
    log_cut = tail.log_survival(whole)
    cut = ops.exp(log_cut)
    near_edge = ops.where(
        near < 0.5,
        ops.log1p(near * ops.expm1(log_cut)),
        ops.log(ops.maximum(far + near * cut, _TINY)),
    )
    # Inside: the smaller of both tails, which the whole law's half c = 0 has.
    below, above = cdf(al), cdf(-be)
    share = 1.0 - below - above
    low_tail, high_tail = below + lower * share, above + upper * share
    smaller = ops.clip(ops.minimum(low_tail, high_tail), _TINY, 0.5)
    from_mean = ops.log(2.0 * smaller)

    s = tail.inverse(ops.where(inside, from_mean, near_edge))
    s = ops.minimum(s, whole)
    sign = ops.where(inside, low_tail > high_tail, under)
    sign = 2.0 * ops.cast(sign, z.dtype) - 1.0
    start = ops.where(inside, mean, ops.clip(mean, LOW, HIGH))
    x = ops.clip(start + sign * stddev * s, LOW, HIGH)

    at_s = ops.where(inside, sign * s, 0.0)
    lower_weight = upper * _density_ratio(al, at_s)
    upper_weight = lower * _density_ratio(be, at_s)
    mean_inside = 1.0 - lower_weight - upper_weight
    log_inside = stddev * (at_s - _times(lower_weight, al) - _times(upper_weight, be))

    # From t(c, whole): `dt/dc` and `dt/dwhole`, all terms of one sign or bounded.
    c = tail.c
    e_far = near * ops.exp(-(whole - s) * (c + 0.5 * (whole + s)))
    gain, end = tail.gain(s), tail.gain(whole)
    by_c = e_far * end / (tail.hazard + end) - gain / (tail.hazard + gain)
    mean_outside = -by_c
    log_outside = sign * stddev * (s - _times(by_c, c) - _times(e_far, whole))
    return (
        x,
        ops.where(inside, mean_inside, mean_outside),
        ops.where(inside, log_inside, log_outside),
    )


def _density_ratio(edge, s):
    """`phi(edge) / phi(s)`."""
    return ops.exp(ops.minimum(0.5 * (s - edge) * (s + edge), _LARGE))


def _times(weight, value):
    """`weight * value`, 0 where the weight is, however large the value."""
    return ops.where(weight == 0.0, 0.0, weight * value)
