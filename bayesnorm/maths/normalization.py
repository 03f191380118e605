"""Mean and variance of normalized Gaussian variables."""

from keras import ops


def standardized_moments(
    mean, variance, axes, epsilon, count=None, shift=True, centered=True
):
    """Moments of `(x - mean(x)) / sqrt(var(x) + epsilon)` of independent variables.

    With the n elements of `axes`, `c = 1` where the mean is subtracted and 0 where
    not, `s^2 = E var(x) + epsilon` (without `centered` `E mean(x^2) + epsilon`),
    `u = (m - c mean(m)) / s` and `y` the same with the mean that `s` is about: mean
    `u`, variance `sum_j v_j (delta_ij - c/n - u_i y_j / n)^2 / s^2`. First order in the
    noise about `s`, which leaves an error of the order of 1/n; exact at variance 0.

    Args:
        mean: Tensor.
        variance: Tensor like `mean`.
        axes: Tuple of integers, normalized over.
        epsilon: Number, added to the mean square.
        count: Number or tensor, the elements normalized over, `inf` for very many;
            None for the product of their sizes.
        shift: Whether the mean is subtracted.
        centered: Whether the divisor is the standard deviation, not the root of the
            mean square.

    Returns:
        `(mean, variance)`.

    Reference:
        Ba et al., 2016, "Layer Normalization", arXiv:1607.06450; Zhang & Sennrich,
        2019, "Root Mean Square Layer Normalization", arXiv:1910.07467.
    """

    def average(x):
        return ops.mean(x, axes, keepdims=True) if axes else x

    if count is None:
        count = 1
        for axis in axes:
            count = count * mean.shape[axis]
    inverse = 1.0 / count
    deviation = mean - average(mean) if centered or shift else mean
    about = deviation if centered else mean
    rest = 1.0 - inverse if centered else 1.0
    power = average(ops.square(about) + rest * variance) + epsilon
    rate = ops.rsqrt(power)
    u, y = (deviation if shift else mean) * rate, about * rate
    own = 1.0 - 2.0 * inverse * (u * y + (1.0 if shift else 0.0))
    others = ops.square(u) * average(ops.square(y) * variance)
    if shift:
        others = others + average(variance) + 2.0 * u * average(y * variance)
    spread = (own * variance + inverse * others) * ops.square(rate)
    return u, ops.maximum(spread, 0.0)


def random_normalization(mean_stddev, log_variance, log_stddev, correlation):
    """Moments of `(x - M) exp(-L / 2)`, M and L jointly normal.

    With the mean i and the variance q of `exp(-L / 2)`, and `t = x - E M + shift`, the
    mean is `i t`, and the covariance of two values of x under one draw of M and L is
    `(i^2 + q) common + (sqrt(q) t + offset) (sqrt(q) t' + offset)`, the first part of
    what L says nothing of. (Weighted by `exp(-k L)` the normal law of M has its mean
    moved by `-k` times the covariance of both, and the same variance.)

    Args:
        mean_stddev: Tensor, standard deviation of M.
        log_variance: Tensor, mean of L.
        log_stddev: Tensor, standard deviation of L.
        correlation: Tensor, of M and L.

    Returns:
        `(i, q, shift, common, offset)`.
    """
    a = 0.25 * ops.square(log_stddev)
    inverse = ops.exp(0.5 * (a - log_variance))
    growth = ops.expm1(a)
    explained = ops.where(a > 0.0, a / ops.where(a > 0.0, growth, 1.0), 1.0)
    shift = 0.5 * correlation * mean_stddev * log_stddev
    common = ops.square(mean_stddev) * (1.0 - ops.square(correlation) * explained)
    offset = inverse * ops.exp(a) * correlation * mean_stddev * ops.sqrt(explained)
    return inverse, ops.square(inverse) * growth, shift, common, offset
