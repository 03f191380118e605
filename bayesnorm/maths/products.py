"""Mean and variance of products and powers."""

from keras import ops


def product_moments(mean1, variance1, mean2, variance2, multiply=ops.multiply):
    """Moments of the product of two independent variables, exact.

    Args:
        mean1: Tensor.
        variance1: Tensor like `mean1`.
        mean2: Tensor that goes with `mean1`.
        variance2: Tensor like `mean2`.
        multiply: Bilinear function of two tensors: the product, or a contraction
            (`ops.matmul`), whose terms then count as independent.

    Returns:
        `(mean, variance)`: `m1 m2` and `v1 v2 + v1 m2^2 + m1^2 v2`.
    """
    spread = multiply(variance1, variance2 + ops.square(mean2))
    return multiply(mean1, mean2), spread + multiply(ops.square(mean1), variance2)


def square_moments(mean, variance):
    """Moments of the square of a Gaussian variable: `m^2 + v`, `2 v^2 + 4 m^2 v`."""
    squared = ops.square(mean)
    return squared + variance, variance * (2.0 * variance + 4.0 * squared)


def power_moments(mean, variance, exponent):
    """Moments of `x^p` to the second order: of logarithms too, for `exponent=0`.

    `m^p + p (p - 1) m^(p - 2) v / 2` and `(p m^(p - 1))^2 v`; `log m - v / (2 m^2)`
    and `v / m^2`. Powers with a pole have no moments under a Gaussian law; these are
    of use where the standard deviation is small against the mean (at a tenth of it
    the mean of 1/x is within 0.04 %, its standard deviation within 2 %).

    Args:
        mean: Tensor, of one sign.
        variance: Tensor like `mean`.
        exponent: Number; 0 for the logarithm.

    Returns:
        `(mean, variance)`.
    """
    ratio = variance / ops.square(mean)
    if exponent == 0:
        return ops.log(mean) - 0.5 * ratio, ratio
    value = ops.power(mean, exponent)
    half = 0.5 * exponent * (exponent - 1.0)
    return value * (1.0 + half * ratio), ops.square(exponent * value) * ratio
