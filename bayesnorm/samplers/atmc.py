"""Adaptive thermostat Monte Carlo."""

import keras
from keras import ops

from bayesnorm.samplers.momentum import ThermostatSampler


@keras.saving.register_keras_serializable("bayesnorm")
class ATMC(ThermostatSampler):
    """Adaptive thermostat Monte Carlo: noise as much as the gradient's leaves room for.

    A step of size h, elementwise, with g the gradient of U (see `Sampler`), e standard
    normal, and M(p) = m sqrt(1 + p^2 / (m c)^2):

        alpha = max(D - xi, 0)
        b     = (alpha + xi) m / M(p)
        p     <- e^{-b h} p - (1 - e^{-b h}) / b g
                 + sqrt(T alpha m (1 - e^{-2 b h}) / b) e
        theta <- theta + h p / M(p)
        xi    <- xi + h / mu (m (p / M(p))^2 - T (m / M(p))^3)

    the last two with the new p. The target is `exp(-U / T)`, whatever the size of the
    gradient's noise: a thermostat xi, `thermostats`, one for each weight, finds it (xi
    settles at `h V / (2 m)` for a gradient of variance V), and the noise that is added
    shrinks by as much. Friction is D at least, and no step is above c h.

    The arguments left at None are the paper's, of the first learning rate h0:
    `D = -log(0.9) / h0`, `m = (h0 / 0.0003)^2`, `c = 0.001 / h0`. A step at h0 is then
    that of SGD with momentum 0.9 and learning rate `9e-8 N` (0.0045 for N = 50,000)
    times 0.95, whatever h0: the learning rate is a unit of time, and its schedule says
    what part of the first step later ones are. For steps of half the size give `mass` 4
    times as large.

    A thermostat sees the noise of its own weight, on average. What two weights' noise
    has in common, and how it depends on where they are, leaves a bias in the weights'
    covariance, a part of the heat `h V / (2 m D)`: smaller steps or larger batches
    lessen it.

    Thermostats need about `mu D / h` steps to settle: 105,000 for the paper's mu = 1.
    Any mu leaves the target as it is.

    Example:
    ```python
    steps = len(images) // 128
    sampler = bayesnorm.samplers.ATMC(
        num_examples=len(images),
        learning_rate=bayesnorm.samplers.CyclicalCosine(0.001, 50 * steps),
    )
    model.compile(sampler, keras.losses.SparseCategoricalCrossentropy(True))
    ```

    Args:
        num_examples: N, the number of training examples.
        learning_rate: h, a number or a `LearningRateSchedule`.
        friction: D, or None.
        mass: m, or None.
        speed_limit: c, None, or `math.inf` for Gaussian momenta.
        thermostat_mass: mu.
        virial: Whether the thermostat reads `p^2 / M - T`, as the paper prints it,
            instead. The target is then not exact (within 1.5 % where it was tried).
        exact_kick: Whether the gradient weighs `h (1 + e^{-b h}) / 2` instead, which
            makes the variance of a quadratic U independent of friction: `1 / (1 - k
            h^2 / (4 m))` times the target's, k the curvature, at any b h.
        temperature: T, from 0. At 0 thermostats rest, and with Gaussian momenta this is
            SGD with momentum, `equivalent_sgd()`.
        seed: Integer; None for a random one.
        verbose: Whether the equivalent SGD is printed.
        **kwargs: Those of `Sampler`.

    Raises:
        ValueError: If an argument is out of range.

    Reference:
        Heek & Kalchbrenner, 2019, "Bayesian Inference for Large Scale Image
        Classification", algorithm 1. (Its `e^{b h}` before p is `e^{-b h}`, and the
        noise has a factor m under the root that is missing there.)
    """

    def _diffusion(self, thermostat):
        return ops.maximum(self.friction - thermostat, 0.0)
