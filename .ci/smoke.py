"""Looks at an installed bayesnorm: where it is, what came with it, what imports."""

import importlib
import importlib.metadata
import importlib.resources
import pathlib
import sys

import bayesnorm
import trainers

for package in (bayesnorm, trainers):
    place = pathlib.Path(package.__file__)
    if not place.is_relative_to(sys.prefix):
        sys.exit(f"{package.__name__} is not the installed one: {place}")
if not importlib.resources.files("bayesnorm").joinpath("py.typed").is_file():
    sys.exit("py.typed is missing: type checkers would not read the annotations")
configs = list(importlib.resources.files("trainers").joinpath("configs").iterdir())
if not configs:
    sys.exit("the configurations of comparisons are missing")

for name in bayesnorm.__all__:
    getattr(bayesnorm, name)
for room in (
    "conformal",
    "datasets",
    "layers",
    "metrics",
    "models",
    "moments",
    "plots",
    "priors",
    "pruning",
    "samplers",
    "storage",
    "training",
    "types",
):
    module = importlib.import_module(f"bayesnorm.{room}")
    for name in getattr(module, "__all__", ()):
        getattr(module, name)
programs = importlib.metadata.entry_points(group="console_scripts")
programs = [p for p in programs if p.value.startswith("trainers.")]
for program in programs:
    program.load()
print(
    f"bayesnorm {bayesnorm.__version__}: {len(bayesnorm.__all__)} public names, "
    f"{len(programs)} programs, {len(configs)} configurations"
)
