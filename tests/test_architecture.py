"""The architecture of CONTRIBUTING.md, held true: who imports whom, private names."""

import ast
import graphlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# From the ground up: a room imports from those before it, never from one behind it.
ROOMS = (
    "_version",
    "types",
    "arguments",
    "metrics",
    "conformal",
    "storage",
    "backend",
    "maths",
    "graph",
    "moments",
    "seeds",
    "priors",
    "layers",
    "models",
    "datasets",
    "plots",
    "streams",
    "training",
    "surgery",
    "pruning",
    "measurement",
    "prediction",
    "serving",
    "samplers",
    "bayesnorm",  # the package's own list of public names
    "trainers",
    "benchmarks",
)
FILES = [
    path
    for package in ("bayesnorm", "trainers", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
]
PRIVATE = re.compile(
    r"keras\.src|\._(functional|flatten_layers|inbound_nodes|outbound_nodes|nodes_by_depth"
    r"|keras_history|run_through_graph|standardize_inputs|inputs_struct|outputs_struct"
    r"|call_context_args|call_has_training_arg|get_call_context|output_shape)\b"
)


def room_of(module):
    """The room of a dotted name: of `bayesnorm.graph.run` it is `graph`."""
    package, _, rest = module.partition(".")
    if package != "bayesnorm":
        return package
    room = rest.partition(".")[0]
    return room if room in ROOMS else "bayesnorm"


def is_for_types(node):
    """Whether a node is `if TYPE_CHECKING:`, whose imports never run."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports_of(path, types=True):
    """Yields the modules of this project that a file imports, if only for types."""
    tree = ast.parse(path.read_text("utf-8"))
    if not types:
        tree.body = [node for node in tree.body if not is_for_types(node)]
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            # `from bayesnorm import backend` imports a room.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.partition(".")[0] in ("bayesnorm", "trainers", "benchmarks"):
                yield name


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_room_imports_one_above_it(path):
    own = ROOMS.index(room_of(module_of(path)))
    above = {name for name in imports_of(path) if ROOMS.index(room_of(name)) > own} - {
        "bayesnorm.__version__"
    }
    assert not above


def test_no_files_import_each_other():
    modules = {module_of(path): path for path in FILES}
    imports = {
        module: {
            # `from bayesnorm.graph import run` is of the package or of a module in it.
            name if name in modules else name.rpartition(".")[0]
            for name in imports_of(path, types=False)
        }
        & modules.keys() - {module}
        for module, path in modules.items()
        if path.name != "__init__.py"
    }
    order = graphlib.TopologicalSorter(imports)
    order.prepare()  # Raises, with the circle.


def test_every_room_is_in_the_list_and_on_the_page():
    folders = {
        path.name.removesuffix(".py")
        for path in (ROOT / "bayesnorm").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    } - {"__init__"}
    assert folders | {"bayesnorm", "trainers", "benchmarks"} == set(ROOMS)
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for room in folders - {"_version"}:
        assert f"`{room}`" in page, room


def test_what_tests_import_of_the_benchmarks_defines_no_flags():
    # Programs have flags of the same names: two in one process are an error, which
    # shows only when both happen to be imported by the same worker.
    modules = {module_of(path): path for path in FILES}
    tests = (ROOT / "tests").rglob("*.py")
    found, ahead = {}, [(name, path) for path in tests for name in imports_of(path)]
    while ahead:
        name, path = ahead.pop()
        name = name if name in modules else name.rpartition(".")[0]
        if name.startswith("benchmarks.") and name not in found:
            found[name] = path
            ahead += [(other, path) for other in imports_of(modules[name])]
    assert found
    assert not {
        f"{name} of {path.name}"
        for name, path in found.items()
        if "flags.DEFINE" in modules[name].read_text("utf-8")
    }


def test_private_names_of_keras_are_in_one_file():
    found = {
        str(path.relative_to(ROOT))
        for path in FILES
        if PRIVATE.search(path.read_text("utf-8"))
    }
    assert found == {"bayesnorm/graph/internals.py"}


def test_folders_of_tests_hide_no_package():
    # Without its `__init__.py`, `tests/trainers` is in the path as `trainers`.
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert [path for path in folders if not (path / "__init__.py").is_file()] == []


SLOW_TO_IMPORT = {"tensorflow_probability", "tensorflow_datasets", "matplotlib"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_importing_the_package_waits_for_nothing_slow(path):
    # Modules of builders are imported where a set of theirs is opened.
    if path.is_relative_to(ROOT / "bayesnorm") and "_builder" not in path.name:
        names = set()
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module or "")
        assert not {name.partition(".")[0] for name in names} & SLOW_TO_IMPORT
