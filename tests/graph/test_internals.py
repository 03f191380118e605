"""The contract with Keras: every private name that the package uses, where it is."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from bayesnorm.graph import internals


def test_internals_are_where_the_package_looks_for_them():
    """Says which private name of Keras moved, where one has."""
    inputs = keras.Input((4,))
    dense = layers.Dense(3)
    hidden = dense(inputs)
    outputs = layers.Dropout(0.5)(hidden)
    model = keras.Model(inputs, outputs)
    stack = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    assert internals.functional(model) is model
    assert internals.functional(stack) is not None
    assert internals.functional(keras.Sequential([layers.Dense(2)])) is None
    assert internals.layers_of(model)[0] is model
    assert dense in internals.layers_of(model)
    node, place = internals.node_of(hidden)
    assert (node.operation, place) == (dense, 0)
    assert node.inputs == [inputs]
    assert node.outputs == [hidden]
    assert [n.operation.name for n in internals.nodes_of(model) if not n.is_input] == [
        dense.name,
        model.layers[-1].name,
    ]
    assert internals.is_symbolic(hidden)
    assert not internals.is_symbolic(np.ones(2))
    assert internals.inputs_struct(model) is not None
    assert internals.outputs_struct(model) is outputs
    assert internals.takes_training(layers.Dropout(0.5))
    assert internals.takes_training(model)
    assert not internals.takes_training(internals.numpy_ops.Add())
    assert len(internals.standardize(model, np.ones((2, 4)))) == 1
    lambda_layer = layers.Lambda(lambda x: x, output_shape=(3,))
    assert internals.lambda_output_shape(lambda_layer) == (3,)
    mask = ops.ones((2,), "bool")
    tensor = ops.ones((2, 3))
    internals.set_keras_mask(tensor, mask)
    assert internals.get_keras_mask(tensor) is mask
    assert issubclass(internals.numpy_ops.Add, keras.Operation)
    assert issubclass(internals.nn_ops.Relu, keras.Operation)
    assert issubclass(internals.core_ops.Cast, keras.Operation)
    assert issubclass(internals.math_ops.Rsqrt, keras.Operation)
    assert issubclass(internals.ReluOperation, keras.Operation)
    assert internals.attends_over_positions(layers.MultiHeadAttention(2, 3))
    assert internals.CustomScaleLayer(0.5).scale == 0.5
    assert internals.LayerScale(0.5, 3).projection_dim == 3
    assert internals.StochasticDepth(0.5).drop_path_rate == 0.5
    with internals.AutocastScope(None):
        pass
    kernel = dense.kernel
    with internals.unlocked(dense, kernel):
        dense.scale = dense.add_weight(shape=(2,), name="scale")
    assert [v.name for v in dense.weights] == ["bias", "scale"]
    with pytest.raises(ValueError, match="cannot add new elements of state"):
        dense.other = dense.add_weight(shape=(2,))
