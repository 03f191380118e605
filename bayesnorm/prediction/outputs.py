"""From a model's outputs to probabilities."""

import functools

import keras
from keras import ops

from bayesnorm.graph import Index, functional, is_graph
from bayesnorm.maths.softmax import softmax_moments

# Layers behind an activation that move its values, one by one.
_MOVES = (
    keras.layers.Reshape,
    keras.layers.Flatten,
    keras.layers.Dropout,
    keras.layers.Cropping1D,
    keras.layers.Cropping2D,
    keras.layers.Cropping3D,
)
# The outputs of a log-softmax are logits too: softmax(log p) = p.
_ACTIVATIONS = {"softmax": False, "sigmoid": False, "log_softmax": True}
_CROSS_ENTROPIES = (
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
)
_BINARY_LOSSES = (
    keras.losses.BinaryCrossentropy,
    keras.losses.BinaryFocalCrossentropy,
)
_TOLERANCE = 0.02


def find_from_logits(model, from_logits=None):
    """Whether a classifier's outputs are logits; they are probabilities otherwise.

    Args:
        model: A model.
        from_logits: Boolean, the answer; None to read it off the loss that the
            model was compiled with, or else off its last activation (softmax,
            sigmoid or log-softmax).

    Returns:
        `from_logits`.

    Raises:
        ValueError: If neither tells.
    """
    if from_logits is not None:
        return bool(from_logits)
    found = _of_loss(model)
    activation = _last_activation(model)
    if found is None:
        found = _ACTIVATIONS.get(activation)
    if found is None:
        raise ValueError(
            f"Cannot tell whether the outputs of model {model.name!r} are logits or "
            "probabilities: it is not compiled with a cross-entropy of Keras, and "
            f"its last activation is {activation!r}, neither softmax nor sigmoid. "
            "Pass from_logits=True (scores before the softmax or sigmoid) or "
            "from_logits=False (probabilities). For regression pass "
            "task='regression'."
        )
    return found


def _of_loss(model):
    loss = getattr(model, "loss", None) if getattr(model, "compiled", False) else None
    if isinstance(loss, list | tuple | dict):
        losses = keras.tree.flatten(loss)
        loss = losses[0] if len(losses) == 1 else None
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if isinstance(loss, functools.partial):
        if "from_logits" in loss.keywords:
            return bool(loss.keywords["from_logits"])
        loss = loss.func
    if isinstance(loss, keras.losses.Loss):
        if isinstance(loss, _BINARY_LOSSES) and _has_classes(model):
            _refuse_labels(model)
        from_logits = loss.get_config().get("from_logits")
        return None if from_logits is None else bool(from_logits)
    return False if loss in _CROSS_ENTROPIES else None


def _has_classes(model):
    return is_graph(model) and functional(model).outputs[0].shape[-1] not in (None, 1)


def _refuse_labels(model):
    raise ValueError(
        f"The outputs of model {model.name!r} are several independent yes-or-no "
        "labels (sigmoids or a binary cross-entropy), not the classes of one. "
        "Pass task='regression' for mean and variance of each output."
    )


def _last_activation(model):
    """Name of the last activation; None where the model shows no graph."""
    if not is_graph(model):
        return None
    index, tensor, name = Index(model), functional(model).outputs[0], None
    # A nested model that is called twice has two makers of its Input: either will do.
    while calls := index.producers(tensor):
        operation, inputs = calls[0].operation, calls[0].inputs
        name = _activation(operation)
        moves = isinstance(operation, _MOVES) or (
            isinstance(operation, keras.layers.Activation) and name == "linear"
        )
        if not moves:
            break
        (tensor,) = inputs
    if name == "sigmoid" and tensor.shape[-1] not in (None, 1):
        _refuse_labels(model)
    return name


def _activation(operation):
    if isinstance(operation, keras.layers.TimeDistributed):
        operation = operation.layer
    activation = getattr(operation, "activation", None)
    if callable(activation):
        return getattr(activation, "__name__", type(activation).__name__)
    # keras.layers.Softmax, and keras.ops.softmax as an operation of the graph.
    names = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log_softmax"}
    return names.get(type(operation).__name__, type(operation).__name__)


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


def unbiased(networks):
    """Returns the factor that makes a variance over so many networks unbiased."""
    return networks / max(networks - 1, 1)


def finish(outputs, from_logits):
    """Returns `probabilities`, or a regression's float32 outputs and None.

    Args:
        outputs: Tensor `[batch, ...]`.
        from_logits: As for `probabilities`; None for a regression.
    """
    if from_logits is None:
        return ops.cast(outputs, "float32"), None
    return probabilities(outputs, from_logits)


def finish_moments(mean, variance, from_logits):
    """Probabilities and a network's mean entropy from the outputs' moments.

    Args:
        mean: Tensor `[batch, ..., classes]`, or `[batch, ..., 1]`.
        variance: Tensor like `mean`.
        from_logits: As for `probabilities`; None for a regression.

    Returns:
        `(probs, entropy)`, or a regression's `(mean, variance)`, float32.
    """
    mean = ops.cast(mean, "float32")
    variance = ops.cast(ops.broadcast_to(variance, ops.shape(mean)), "float32")
    if from_logits is None:
        return mean, variance
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
