"""PyTorch's part of `benchmarks.peers`, for an interpreter that has torch-uncertainty.

```
PYTHON torch_side.py DATA.npz
```

It reads the name of a method a line, and answers with a line of JSON: the seconds and
the probabilities. It ends with exit code 3 if a library is not installed. It needs no
other file of this package, none of whose requirements the interpreter has to meet.
"""

import copy
import importlib.metadata
import json
import sys
import time

import numpy as np

ABSENT = 3


def network(layers, arrays):
    """Returns a module of layers as `benchmarks.peers.description` has them."""
    import torch
    from torch import nn

    made = []
    for i, layer in enumerate(layers):
        weights = {
            name: torch.tensor(arrays[f"{i}/{name}"]) for name in layer["weights"]
        }
        kind = layer["kind"]
        if kind == "conv":
            out, channels, *kernel = weights["weight"].shape
            if any(layer["pads"]):
                made.append(nn.ZeroPad2d(layer["pads"]))
            made.append(nn.Conv2d(channels, out, kernel, layer["strides"], bias=False))
        elif kind == "norm":
            channels = len(weights["weight"])
            made.append(nn.BatchNorm2d(channels, eps=layer["epsilon"]))
        elif kind == "relu":
            made.append(nn.LeakyReLU(layer["slope"]))
        elif kind == "dropout":
            made.append(nn.Dropout(layer["rate"]))
        else:
            made += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        with torch.no_grad():
            for name, value in weights.items():
                getattr(made[-1], name).copy_(value)
    return nn.Sequential(*made).eval()


class Methods:
    """What is timed.

    Args:
        task: Dict of `samples`, `batch_size`, `train_batch_size` and `networks`, layers
            of each.
        arrays: Arrays by name.
    """

    def __init__(self, task, arrays):
        import torch
        from torch.utils.data import DataLoader, TensorDataset
        from torch_uncertainty.methods import deep_ensembles, mc_dropout
        from torch_uncertainty.post_processing import MCBatchNorm

        self._torch, self._batch = torch, task["batch_size"]
        self._samples = task["samples"]
        models = [
            network(layers, arrays[f"weights/{k}"])
            for k, layers in enumerate(task["networks"])
        ]
        images = {name: torch.tensor(arrays["images"][name]) for name in ("x", "train")}
        self._x = images["x"]
        # Its layers are a list of the class: one for all of a process.
        self._mcbn = MCBatchNorm(
            copy.deepcopy(models[0]),
            self._samples,
            mc_batch_size=task["train_batch_size"],
        )
        train = TensorDataset(images["train"], torch.zeros(len(images["train"])))
        self._train = DataLoader(train, task["train_batch_size"], shuffle=True)
        self._dropout = mc_dropout(copy.deepcopy(models[0]), self._samples).eval()
        self._ensemble = deep_ensembles(models).eval()
        self._model = models[0]

    def one_pass(self):
        """The network as it is."""
        return self._averaged(self._model)

    def mcbn(self):
        """Statistics of training batches."""
        self._mcbn.fit(self._train)
        return self._averaged(self._mcbn.eval())

    def dropout(self):
        """Dropout at prediction."""
        return self._averaged(self._dropout)

    def ensemble(self):
        """All members."""
        return self._averaged(self._ensemble)

    def _averaged(self, model):
        """Probabilities: of the networks of a batch, which come one after the other."""
        found = []
        for x in self._x.split(self._batch):
            probs = model(x).softmax(-1)
            found.append(probs.reshape(-1, len(x), probs.shape[-1]).mean(0))
        return self._torch.cat(found).numpy()


def arrays_of(path):
    """Returns the task of an archive, and its arrays in folders."""
    found = {}
    with np.load(path) as archive:
        task = json.loads(str(archive["task"]))
        for name in archive.files:
            if name != "task":
                folder, _, rest = name.partition(":")
                found.setdefault(folder, {})[rest] = archive[name]
    return task, found


def main(path):
    """Answers until the input ends."""
    try:
        import torch

        task, arrays = arrays_of(path)
        torch.set_num_threads(task["threads"])
        methods = Methods(task, arrays)
        names = ("torch", "torch_uncertainty")
        versions = {name: importlib.metadata.version(name) for name in names}
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(ABSENT)
    print(json.dumps(versions), flush=True)
    with torch.no_grad():
        for line in sys.stdin:
            start = time.perf_counter()
            probs = getattr(methods, line.strip())()
            seconds = time.perf_counter() - start
            print(json.dumps([seconds, probs.tolist()]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
