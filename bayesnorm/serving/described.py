"""What an exported graph takes and gives, told of a model."""

import keras

from bayesnorm.graph import functional, is_graph
from bayesnorm.graph.internals import get_input_signature
from bayesnorm.layers.noise import stochastic_layers
from bayesnorm.prediction.members import members_of
from bayesnorm.prediction.tasks import outputs_of
from bayesnorm.prediction.weight_sets import WeightSets, built_model


def check_tensorflow(what):
    """Raises a ValueError unless the backend is TensorFlow, which writes `what`."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"{what} is exported with the TensorFlow backend; this is "
            f"{keras.backend.backend()!r}. Save the model with "
            "model.save('model.keras'), start Python with KERAS_BACKEND=tensorflow, "
            "load it there and export."
        )


def signature_of(model):
    """Returns a model's inputs, a nest of InputSpecs with their names in signatures.

    A single input is called `inputs`, several by the names of the model's Inputs.
    """
    (nest,) = get_input_signature(model)
    flat = keras.tree.flatten(nest)
    if len(flat) == 1:
        names = ["inputs"]
    elif is_graph(model):
        names = [x.name for x in functional(model).inputs]
    else:
        names = [f"inputs_{i}" for i in range(len(flat))]
    named = [
        keras.InputSpec(shape=(None, *x.shape[1:]), dtype=x.dtype, name=name)
        for x, name in zip(flat, names, strict=True)
    ]
    return keras.tree.pack_sequence_as(nest, named)


def described(model, task, from_logits):
    """Finds out what of a model or an ensemble is exported.

    Args:
        model: As of `bayesnorm.export`.
        task: As of `bayesnorm.predict`.
        from_logits: As of `bayesnorm.predict`.

    Returns:
        `(model, sets, outputs)`: the built model, the `WeightSets` of an ensemble or
        None, and the `Outputs`.

    Raises:
        TypeError: If it is neither.
        ValueError: If the models are not of one architecture or have other outputs.
    """
    if isinstance(model, WeightSets):
        return model.model, model, _outputs(model.model, task, from_logits)
    if not isinstance(model, list | tuple):
        model = built_model(model)
        return model, None, _outputs(model, task, from_logits)
    sets = WeightSets.of(model)
    found = [_outputs(built_model(m), task, from_logits) for m in model]
    if any(outputs.each != found[0].each for outputs in found):
        raise ValueError(
            "The members of an ensemble must have the same outputs, all logits or all "
            f"probabilities. Received: {[outputs.each for outputs in found]}"
        )
    return sets.model, sets, found[0]


def _outputs(model, task, from_logits):
    inputs = keras.tree.map_structure(
        lambda x: keras.KerasTensor(x.shape, x.dtype), signature_of(model)
    )
    return outputs_of(model, inputs, task, from_logits)


def check_noise(model, sets):
    """Checks that the layers of a model, or of each set, are ready to draw.

    Raises:
        ValueError: If one is not.
    """
    for member in members_of(model if sets is None else sets):
        with member.scope():
            for layer in stochastic_layers(model):
                layer.check_noise()
