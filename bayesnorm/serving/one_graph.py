"""One graph of a network, or of the networks of a posterior, for other runtimes.

Imported only to export, with the TensorFlow backend.
"""

import re

import keras
import tensorflow as tf
from keras import ops

from bayesnorm.backend import tensorflow as backend
from bayesnorm.graph import layers_of
from bayesnorm.layers.noise import noise_mode
from bayesnorm.moments import propagate
from bayesnorm.prediction.average import average_networks, mean_network
from bayesnorm.prediction.networks import Noise
from bayesnorm.prediction.outputs import finish_moments, unbiased
from bayesnorm.serving.entries import Entries


class OneGraph:
    """A function of the model's inputs, and of noise, with nothing random in it.

    Args:
        members: The `Members` of an ensemble, or of one model.
        signature: The model's inputs, a nest of `InputSpec`s with names.
        method: `"mean"`, `"moments"` or `"sample"`.
        outputs: An `Output` for each output of the model.
        temperatures: The temperature of each output's average.

    Attributes:
        model: The model.
        specs: List of the `TensorSpec`s of its inputs, at last of `noise`
            `[members * networks, size]` for `"sample"`.
    """

    def __init__(self, members, signature, method, outputs, temperatures):
        self._members, self.model = members, members.model
        self._nest, self._outputs = signature, outputs
        self._method, self._noise = method, Noise(self.model)
        self._entries = Entries(outputs, temperatures)
        self.specs = [
            tf.TensorSpec(x.shape, x.dtype, x.name)
            for x in keras.tree.flatten(signature)
        ]
        if method == "sample":
            size = self._noise.size
            self.specs.append(tf.TensorSpec([None, size], "float32", "noise"))

    def __call__(self, inputs):
        """Returns the entries, a dict of tensors with the batch first.

        Args:
            inputs: List of tensors as in `specs`.
        """
        say = {"mean": self._mean, "moments": self._moments, "sample": self._sample}
        draws = None
        if self._method == "sample":
            *inputs, draws = inputs
        inputs = keras.tree.pack_sequence_as(self._nest, inputs)
        with backend.portable():
            return say[self._method](inputs, draws)

    def _average(self, say):
        return self._members.average(say, self._outputs)

    def _mean(self, inputs, draws):
        def member(i):
            with noise_mode("mean"):
                return mean_network(self.model, inputs, self._outputs)

        said, members = self._average(member), self._members.number
        if members > 1:
            return self._entries.of_several(said, unbiased(members))
        return self._entries.of_one(said)

    def _moments(self, inputs, draws):
        def member(i):
            found = keras.tree.flatten(propagate(self.model, inputs, 0.0))
            return [
                (*finish_moments(moments.mean, moments.variance, output), None)
                for moments, output in zip(found, self._outputs, strict=True)
            ]

        return self._entries.of_several(self._average(member), 1.0)

    def _sample(self, inputs, draws):
        every = ops.shape(draws)[0]
        networks = every // self._members.number

        def member(i):
            own = draws[i * networks : (i + 1) * networks]
            return average_networks(
                self.model,
                inputs,
                lambda numbers: self._noise.mode(own),
                networks,
                networks,
                self._outputs,
            )

        factor = unbiased(ops.cast(every, "float32"), ops.maximum)
        return self._entries.of_several(self._average(member), factor)

    def traced(self):
        """Returns the function as a `tf.function` of one argument an input."""
        return tf.function(lambda *inputs: self(list(inputs)), autograph=False)

    def check(self, function, unknown, runtime):
        """Raises a ValueError that names the layers of unknown operations, if any.

        Args:
            function: What `traced` returned.
            unknown: Set of the types of operations that a runtime does not know.
            runtime: Its name.
        """
        if not unknown:
            return
        names = self._layers_with(function, unknown)
        raise ValueError(
            f"{runtime} has no operation for {', '.join(sorted(unknown))}"
            + (f", which layers {', '.join(names)} need" if names else "")
            + f" in method={self._method!r} of model {self.model.name!r}. Export the "
            "model without these layers, or serve it as a SavedModel "
            "(bayesnorm.export), which runs everything."
        )

    def _layers_with(self, function, kinds):
        """Returns the names of the layers in whose scopes operations of kinds stand."""
        graph = function.get_concrete_function(*self.specs).graph.as_graph_def()
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        scopes = [(node.op, node.name.split("/")[:-1]) for node in nodes]
        every = {name for _, names in scopes for name in names}
        own = {name for kind, names in scopes if kind in kinds for name in names}
        layers = [
            layer.name
            for layer in layers_of(self.model)
            if not isinstance(layer, keras.Model)
        ]
        # TensorFlow counts scopes of a name, those of all layers alike.
        suffixes = {re.search(r"(_\d+)?$", name)[0] for name in every}

        def found(suffix):
            ours = [name + suffix for name in layers]
            return len(every.intersection(ours)), len(own.intersection(ours))

        suffix = max(sorted({"", *suffixes}), key=found)
        return [name for name in layers if name + suffix in own]
