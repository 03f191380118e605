"""From a model's outputs to probabilities."""

from keras import ops

from bayesnorm.maths.softmax import softmax_moments

_TOLERANCE = 0.02


def two_classes(x, from_logits):
    """Returns outputs `[..., classes]`, of a single one those of "no" and "yes".

    Args:
        x: Tensor `[..., classes]` or `[..., 1]`.
        from_logits: Whether they are logits, or else probabilities.
    """
    if x.shape[-1] != 1:
        return x
    return ops.concatenate([ops.zeros_like(x) if from_logits else 1.0 - x, x], axis=-1)


def probabilities(outputs, from_logits):
    """Probabilities of the classes and their entropy, in float32.

    A single output is that of a yes-or-no question: it becomes two classes, "no"
    and "yes".

    Args:
        outputs: Tensor `[batch, ..., classes]` or `[batch, ..., 1]`.
        from_logits: Whether they are logits, or else probabilities.

    Returns:
        `(probs, entropy)`, `[batch, ..., classes]` that add up to 1, and
        `[batch, ...]` in nats. NaN where `from_logits=False` and the outputs are
        not probabilities.

    Raises:
        ValueError: If the outputs have no axis of classes.
    """
    if len(outputs.shape) < 2:
        raise ValueError(
            "Expected outputs of shape [batch, ..., classes], or [batch, ..., 1] of a "
            f"yes-or-no question. Received: shape {tuple(outputs.shape)}"
        )
    x = two_classes(ops.cast(outputs, "float32"), from_logits)
    if from_logits:
        log_probs = ops.log_softmax(x, axis=-1)
        probs = ops.exp(log_probs)
    else:
        total = ops.sum(x, axis=-1, keepdims=True)
        valid = ops.logical_and(
            ops.abs(total - 1.0) < _TOLERANCE, ops.min(x, -1, keepdims=True) >= 0
        )
        # In half precision they add up to 1 only roughly.
        probs = ops.where(valid, x / total, float("nan"))
        log_probs = ops.log(ops.where(probs > 0, probs, 1.0))
    terms = ops.where(probs > 0, probs * log_probs, 0.0)
    return probs, -ops.sum(terms, axis=-1)


def entropy_and_information(probs, mean_entropy, numbers=ops):
    """Splits the entropy of an averaged prediction, in nats.

    Args:
        probs: The average over the networks, `[..., classes]`.
        mean_entropy: The mean entropy of a network, `[...]`.
        numbers: What computes: `keras.ops`, or NumPy for float64 on every backend.

    Returns:
        `(entropy, mutual_information)`, `[...]` both: `H(mean p)`, and
        `H(mean p) - mean H(p)`, from 0.
    """
    logs = numbers.log(numbers.where(probs > 0, probs, 1.0))
    entropy = -numbers.sum(probs * logs, axis=-1)
    return entropy, numbers.maximum(entropy - mean_entropy, 0.0)


def temper(probs, temperature, numbers=ops):
    """Returns averaged probabilities at a temperature, and their entropy in nats.

    `q_k = p_k^(1/T) / sum_j p_j^(1/T)`, that is `softmax(log p / T)`.

    Args:
        probs: `[..., classes]`.
        temperature: T.
        numbers: As of `entropy_and_information`.

    Returns:
        `(q, entropy)`, `[..., classes]` and `[...]`.
    """
    positive = probs > 0
    logs = numbers.log(numbers.where(positive, probs, 1.0)) / temperature
    # The most probable class at 0: of many classes all may be small.
    highest = numbers.log(numbers.max(probs, axis=-1, keepdims=True)) / temperature
    powers = numbers.where(positive, numbers.exp(logs - highest), 0.0)
    q = powers / numbers.sum(powers, axis=-1, keepdims=True)
    log_q = numbers.log(numbers.where(q > 0, q, 1.0))
    return q, -numbers.sum(q * log_q, axis=-1)


def told(probs, output):
    """Returns the probabilities that are told, of those that `finish` gave.

    Of a label, for which these are of two classes, that of yes.
    """
    return probs[..., 1] if output.task == "multilabel" else probs


def unbiased(networks, maximum=max):
    """Returns the factor that makes a variance over so many networks unbiased.

    Args:
        networks: Their number, an integer or, with `maximum=ops.maximum`, a tensor.
        maximum: The function that takes the larger of two.
    """
    return networks / maximum(networks - 1, 1)


def finish(outputs, output):
    """Returns what a network says: `(values, spread)`, float32.

    Args:
        outputs: Tensor `[batch, ...]`.
        output: The `Output` that it is.

    Returns:
        A regression's values and None, else `probabilities`; of labels each becomes a
        yes-or-no question, `[batch, ..., labels, 2]`, with an entropy of its own.
    """
    if output.task == "regression":
        return ops.cast(outputs, "float32"), None
    if output.task == "multilabel":
        outputs = ops.expand_dims(outputs, -1)
    return probabilities(outputs, output.from_logits)


def finish_moments(mean, variance, output):
    """Probabilities and a network's mean entropy from the outputs' moments.

    Args:
        mean: Tensor `[batch, ..., classes]`, or `[batch, ..., 1]`.
        variance: Tensor like `mean`.
        output: The `Output` that it is.

    Returns:
        `(probs, entropy)` as of `finish`, or a regression's `(mean, variance)`,
        float32.
    """
    mean = ops.cast(mean, "float32")
    variance = ops.cast(ops.broadcast_to(variance, ops.shape(mean)), "float32")
    if output.task == "regression":
        return mean, variance
    if output.task == "multilabel":
        mean, variance = ops.expand_dims(mean, -1), ops.expand_dims(variance, -1)
    from_logits = output.from_logits
    if mean.shape[-1] == 1:
        no = ops.zeros_like(variance) if from_logits else variance
        mean = two_classes(mean, from_logits)
        variance = ops.concatenate([no, variance], -1)
    if from_logits:
        # "auto" computes the costly integrals even where it then drops them all.
        mean, variance = ops.cond(
            ops.max(variance) <= 1.0,
            lambda: softmax_moments(mean, variance, "lognormal"),
            lambda: softmax_moments(mean, variance, "auto"),
        )
    probs, entropy = probabilities(mean, from_logits=False)
    return probs, entropy - _mutual_information(probs, variance, entropy)


def _mutual_information(probs, variance, entropy):
    """Between label and network, from mean and variance of the probabilities."""
    positive = probs > 0
    ratio = ops.where(positive, variance / ops.where(positive, probs, 1.0), 0.0)
    second_order = 0.5 * ops.sum(ratio, -1)
    total = ops.maximum(ops.sum(variance, -1), 1e-12)
    precision = ops.maximum(ops.sum(probs * (1.0 - probs), -1) / total - 1.0, 1e-6)
    alpha = probs * ops.expand_dims(precision, -1)
    mean_entropy = _digamma(precision + 1.0) - ops.sum(
        probs * _digamma(alpha + 1.0), -1
    )
    dirichlet = ops.maximum(entropy - mean_entropy, 0.0)
    if probs.shape[-1] == 2:
        return dirichlet
    return ops.minimum(second_order, dirichlet)


def _digamma(x):
    """The digamma function of x from 1, to 1e-6."""
    y = x + 6.0
    shift = sum(1.0 / (x + i) for i in range(6))
    inverse = 1.0 / ops.square(y)
    series = inverse * (1 / 12 - inverse * (1 / 120 - inverse / 252))
    return ops.log(y) - 0.5 / y - series - shift
