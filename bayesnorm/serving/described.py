"""What an exported graph takes and gives, told of a model."""

import keras

from bayesnorm.graph import functional, is_graph
from bayesnorm.graph.internals import get_input_signature
from bayesnorm.prediction.tasks import outputs_of


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


def described_outputs(model, task, from_logits):
    """Returns the `Outputs` of a built model; see `outputs_of`."""
    inputs = keras.tree.map_structure(
        lambda x: keras.KerasTensor(x.shape, x.dtype), signature_of(model)
    )
    return outputs_of(model, inputs, task, from_logits)
