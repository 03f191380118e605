"""Stochastic gradient Hamiltonian Monte Carlo."""

import keras

from bayesnorm.samplers.momentum import MomentumSampler


@keras.saving.register_keras_serializable("bayesnorm")
class SGHMC(MomentumSampler):
    """Stochastic gradient Hamiltonian Monte Carlo, without a thermostat.

    A step of size h, elementwise, with g the gradient of U (see `Sampler`) and e
    standard normal, for Gaussian momenta:

        p     <- e^{-D h} p - (1 - e^{-D h}) / D g + sqrt(T m (1 - e^{-2 D h})) e
        theta <- theta + h p / m

    The target is `exp(-U / T)` for exact gradients. The noise of a batch's gradient, of
    variance V, comes on top, as heat: by a factor of about `1 + h V / (2 D m)` in the
    temperature (the paper's estimate of V is 0 here; `ATMC` and `SGNHT` find it).

    `friction` and `mass` left at None, and the translation to SGD, are those of `ATMC`.

    Args:
        num_examples: N, the number of training examples.
        learning_rate: h, a number or a `LearningRateSchedule`.
        friction: D, or None.
        mass: m, or None.
        speed_limit: c of hyperbolic momenta, None for that of `ATMC`.
        exact_kick: As for `ATMC`.
        **kwargs: Those of `Sampler`.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Chen, Fox and Guestrin, 2014, "Stochastic Gradient Hamiltonian Monte Carlo".
    """
