"""What an exported graph answers: entries by name, from what networks say."""

from keras import ops

from bayesnorm.prediction.outputs import entropy_and_information, temper, told


class Entries:
    """The entries of all outputs of a model.

    Args:
        outputs: An `Output` for each output of the model.
        temperatures: The temperature of each output's average.
    """

    def __init__(self, outputs, temperatures):
        self._outputs = outputs
        self._temperatures = dict(zip(outputs, temperatures, strict=True))

    def of_one(self, said):
        """Returns what one network says: no information, and no variance.

        Args:
            said: What `mean_network` returned.
        """

        def entries(said, output):
            values, entropy, _ = said
            if output.task == "regression":
                return {"mean": values}
            return self._probabilities(values, entropy, output)

        return self._collect(entries, said)

    def of_several(self, said, factor):
        """Returns what the average of networks says.

        Args:
            said: As of `average_networks`.
            factor: What makes a variance over these networks unbiased.
        """

        def entries(said, output):
            mean, spread, _ = said
            if output.task == "regression":
                return {"mean": mean, "variance": spread * factor}
            entropy, information = entropy_and_information(mean, spread)
            found = self._probabilities(mean, entropy, output)
            return found | {"mutual_information": information}

        return self._collect(entries, said)

    def samples(self, said):
        """Returns what each network says, `[batch, networks, ...]`.

        Args:
            said: What `average_networks` returned with `keep_samples=True`.
        """

        def entries(said, output):
            *_, values = said
            return {"samples": ops.swapaxes(told(values, output), 0, 1)}

        return self._collect(entries, said)

    def _probabilities(self, probs, entropy, output):
        temperature = self._temperatures[output]
        if temperature != 1.0:
            probs, entropy = temper(probs, temperature)
        return {"probs": told(probs, output), "entropy": entropy}

    def _collect(self, entries, said):
        return {
            output.entry(name): value
            for of_output, output in zip(said, self._outputs, strict=True)
            for name, value in entries(of_output, output).items()
        }
