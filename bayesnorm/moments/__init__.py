"""Mean and variance of activations, propagated through a model's layers.

`propagate(model, mean, var)` gives those of the outputs; `register` adds the
rule of a layer type.

Reference:
    Shekhovtsov & Flach, 2018, "Stochastic Normalizations as Bayesian Learning";
    Gast & Roth, 2018, "Lightweight Probabilistic Deep Networks", arXiv:1805.11327.
"""

from bayesnorm.moments import (  # noqa: F401  (each registers its rules)
    attention_rules,
    linear_rules,
    merge_rules,
    noise_rules,
    normalization_rules,
    op_rules,
    op_shape_rules,
    pooling_rules,
    shape_rules,
)
from bayesnorm.moments.activation_rules import register_activation
from bayesnorm.moments.moments import Moments
from bayesnorm.moments.registry import register, register_elementwise, rule_for
from bayesnorm.moments.walk import (
    check_rules,
    check_upstream,
    pooled_upstream_moments,
    propagate,
    upstream_moments,
)

__all__ = [
    "Moments",
    "check_rules",
    "check_upstream",
    "pooled_upstream_moments",
    "propagate",
    "register",
    "register_activation",
    "register_elementwise",
    "rule_for",
    "upstream_moments",
]
