"""One step of Langevin dynamics with momentum, elementwise.

A particle `theta` of energy `U(theta)` has a momentum `p` of kinetic energy

    K(p) = m c^2 (sqrt(1 + p^2 / (m c)^2) - 1),

which tends to `p^2 / (2 m)` as c goes to infinity. With `M(p) = m sqrt(1 + p^2 / (m
c)^2)` its velocity is `K' = p / M(p)`, never above c, and `K'' = m^2 / M(p)^3`. The
dynamics

    d theta = p / M dt
    d p     = -grad U dt - (alpha + xi) m p / M dt + sqrt(2 T alpha m) dW
    d xi    = (m (p / M)^2 - T (m / M)^3) / mu dt

leave `exp(-(U + K + mu xi^2 / 2) / T)` as it is: xi counteracts heat that comes in by
noise of the gradient. `alpha` is any function of xi.

Everything is in `keras.ops`, in the type of its arguments.

Reference:
    Heek & Kalchbrenner, 2019, "Bayesian Inference for Large Scale Image
    Classification", eq. (4) to (10), with the sign and the factor m that are misprinted
    there put right.
"""

import math

from keras import ops


def relativistic_mass(momentum, mass, speed_limit=math.inf):
    """Returns `M(p) = m sqrt(1 + p^2 / (m c)^2)`, `m` for an infinite c."""
    if math.isinf(speed_limit):
        return ops.full_like(momentum, mass)
    return mass * ops.sqrt(1.0 + ops.square(momentum / (mass * speed_limit)))


def velocity(momentum, mass, speed_limit=math.inf):
    """Returns `K'(p) = p / M(p)`, of absolute value below c."""
    return momentum / relativistic_mass(momentum, mass, speed_limit)


def kick(
    momentum,
    gradient,
    step,
    diffusion,
    friction,
    mass,
    noise,
    speed_limit=math.inf,
    temperature=1.0,
    exact=False,
):
    """Returns the momentum after a step of time h with a gradient and friction.

    With `b = beta m / M(p)` of the momentum that enters,

        p <- e^{-b h} p - (1 - e^{-b h}) / b g + sqrt(T alpha m (1 - e^{-2 b h}) / b) e,

    which solves the momentum's equation at fixed theta and M. Friction of 0 or below is
    right, too.

    Args:
        momentum: Tensor, p.
        gradient: Tensor of its shape, g, that of U.
        step: Scalar, h.
        diffusion: Tensor or scalar from 0, alpha.
        friction: Tensor or scalar, beta = alpha + xi.
        mass: Number, m.
        noise: Tensor of standard normals, e.
        speed_limit: Number, c.
        temperature: Number, T.
        exact: Whether the gradient weighs `h (1 + e^{-b h}) / 2` instead. On `U = k
            theta^2 / 2` the stationary variance is `X T / k` in the middle of the drift
            that follows, and `X^2 / (X - k h^2 / (4 m)) T / k` at its end: X is 1 then,
            and `x coth(x)` with the other, `x = b h / 2`.

    Returns:
        Tensor of p's shape.
    """
    ratio = mass / relativistic_mass(momentum, mass, speed_limit)
    exponent = friction * ratio * step
    decay = ops.exp(-exponent)
    weight = 0.5 * (1.0 + decay) if exact else _phi(-exponent)
    variance = 2.0 * temperature * mass * diffusion * step * _phi(-2.0 * exponent)
    return decay * momentum - step * weight * gradient + ops.sqrt(variance) * noise


def _phi(x):
    """Returns `(e^x - 1) / x`, 1 at 0."""
    zero = ops.equal(x, 0.0)
    safe = ops.where(zero, ops.ones_like(x), x)
    return ops.where(zero, ops.ones_like(x), ops.expm1(safe) / safe)


def thermostat_rate(
    momentum, mass, speed_limit=math.inf, temperature=1.0, virial=False
):
    """Returns `mu d xi / dt`, of mean 0 at the temperature.

    Args:
        momentum: Tensor, p.
        mass: Number, m.
        speed_limit: Number, c.
        temperature: Number, T.
        virial: Whether it is `p K' - T` instead of `m K'^2 - T m K''`. It, too, has
            mean 0, and leaves the target as it is only where c is infinite, where both
            are `p^2 / m - T`.
    """
    relativistic = relativistic_mass(momentum, mass, speed_limit)
    if virial:
        return ops.square(momentum) / relativistic - temperature
    ratio = mass / relativistic
    speed = momentum / relativistic
    return mass * ops.square(speed) - temperature * ratio**3
