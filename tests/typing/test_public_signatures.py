"""What users import says the type of each argument and of what it returns."""

import importlib
import inspect
import pkgutil

import pytest

import bayesnorm
from tests.typing import user

# Rooms that list their public names, and modules whose names are all public.
ROOMS = (
    "bayesnorm",
    "bayesnorm.conformal",
    "bayesnorm.datasets",
    "bayesnorm.layers",
    "bayesnorm.metrics",
    "bayesnorm.models",
    "bayesnorm.moments",
    "bayesnorm.plots",
    "bayesnorm.pruning",
    "bayesnorm.samplers",
    "bayesnorm.storage",
    "bayesnorm.training",
)
MODULES = (
    "bayesnorm.priors",
    "bayesnorm.seeds",
    *(
        f"bayesnorm.{room}.{module.name}"
        for room in ("datasets", "layers", "models", "plots", "samplers", "training")
        for module in pkgutil.iter_modules(
            importlib.import_module(f"bayesnorm.{room}").__path__
        )
        # Their functions are those of TensorFlow Datasets.
        if not module.name.endswith(("_builder", "_builders"))
    ),
    *(f"bayesnorm.serving.{name}" for name in ("ray_serve", "tune_batching")),
)
SPECIAL = {"__init__", "__call__", "__getitem__", "__iter__", "__len__"}


def names_of(module):
    if module.__name__ in ROOMS:
        return module.__all__
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    ]


def functions_of(name, value):
    """Yields `(name, function)` of a public name: itself, or the methods of a class."""
    if inspect.isclass(value):
        for base in value.__mro__:
            if not base.__module__.startswith("bayesnorm"):
                continue
            for key, member in vars(base).items():
                if key.startswith("_") and key not in SPECIAL:
                    continue
                member = getattr(member, "fget", getattr(member, "__func__", member))
                if inspect.isfunction(member):
                    yield f"{base.__module__}.{base.__name__}.{key}", member
    elif inspect.isfunction(value):
        yield f"{value.__module__}.{name}", value


def untyped(function):
    """Returns what of a signature has no type."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if (
        "." in function.__qualname__
        and parameters
        and parameters[0].name
        in (
            "self",
            "cls",
        )
    ):
        parameters = parameters[1:]
    found = [p.name for p in parameters if p.annotation is p.empty]
    if signature.return_annotation is signature.empty:
        found.append("return")
    return found


@pytest.mark.parametrize("module", [*ROOMS, *MODULES])
def test_every_public_signature_is_typed(module):
    if module.endswith("ray_serve"):
        pytest.importorskip("ray")
    module = importlib.import_module(module)
    functions = {
        key: function
        for name in names_of(module)
        for key, function in functions_of(name, getattr(module, name))
    }
    missing = {key: untyped(function) for key, function in functions.items()}
    assert {key: names for key, names in missing.items() if names} == {}


def test_the_test_sees_what_has_no_type():
    def half(x: int, y):
        return x + y

    class Base(bayesnorm.StochasticLayer):
        @property
        def size(self):
            return 1

        @classmethod
        def of(cls, x):
            return cls()

    Base.__module__ = "bayesnorm.nowhere"
    found = dict(functions_of("Base", Base))
    assert untyped(half) == ["y", "return"]
    assert untyped(found["bayesnorm.nowhere.Base.size"]) == ["return"]
    assert untyped(found["bayesnorm.nowhere.Base.of"]) == ["x", "return"]
    assert len(found) > 8


def test_what_a_user_writes_runs(tmp_path):
    user.use(tmp_path)
