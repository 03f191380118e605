"""Commands in the pages name modules and flags that there are."""

import ast
import functools
import importlib
import importlib.util
import pathlib
import re
import shlex

import pytest
from absl import flags as absl_flags

from tests.docs.pages import PAGES, ROOT, blocks, spans, text
from trainers.flags import define, parse

OWN = ("bayesnorm", "trainers", "benchmarks")
# Flags that pages name of programs that are not of this package.
OTHERS = {
    "check",
    "help",
    "kill-on-bad-exit",
    "model_base_path",
    "no-deps",
    "requeue",
    "strict",
    "verbosity",
}
_DEFINITION = re.compile(r"DEFINE_\w+|Flag|integer|positive")
_PROGRAMS = {
    f"trainers.{name}": importlib.import_module(f"trainers.{name}").PROGRAM
    for name in ("all_cnn", "cell_fcn", "sbn", "sbp", "atmc")
}


def source(module):
    """The file that `python -m module` runs."""
    found = importlib.util.find_spec(module)
    assert found is not None, module
    if found.submodule_search_locations is not None:
        return source(f"{module}.__main__")
    return pathlib.Path(found.origin)


def defined_in(module):
    """The names of the flags that a module defines, read off its source."""
    if module == "benchmarks.accelerator":  # It imports JAX, which may not be there.
        networks = (_PROGRAMS["trainers.all_cnn"], _PROGRAMS["trainers.sbn"])
        groups = (group for program in networks for group in program.all_groups)
        return defined_in(f"{module}.plan") | set(define(*groups))
    tree = ast.parse(source(module).read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        call.args[0].value
        for call in calls
        if _DEFINITION.fullmatch(ast.unparse(call.func).rpartition(".")[2])
        and isinstance(call.args[0], ast.Constant)
    }


def check(module, words):
    """Checks that a module can be run with these words."""
    own, dashes, rest = words, [], []
    if "--" in words:
        where = words.index("--")
        own, dashes, rest = words[:where], words[where:], words[where + 1 :]
    if module in _PROGRAMS:
        flags = define(*_PROGRAMS[module].all_groups)
        assert parse(flags, [module, *own]) == [module]
    else:
        names = {w[2:].partition("=")[0] for w in own if w.startswith("--")}
        assert names <= defined_in(module), module
    if dashes:
        check(rest[0], rest[1:])


def commands(page):
    """`(module, words)` of each `python -m module words` of this package."""
    shell = [*blocks(page, ""), *blocks(page, "sh")]
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    for line in [*lines, *(" ".join(span.split()) for span in spans(page))]:
        for part in re.split(r"&&|\||;|(?<=\s)#", line):
            _, python, command = part.partition("python -m ")
            words = shlex.split(command) if python else []
            if words and words[0].partition(".")[0] in OWN:
                yield words[0], words[1:]


@pytest.mark.parametrize("page", PAGES)
def test_commands_run_what_there_is(page):
    for module, words in commands(page):
        check(module, [word for word in words if word not in ("...", "--help")])


@functools.cache
def every_flag():
    """The names of all flags of the package."""
    modules = [f"benchmarks.{path.stem}" for path in (ROOT / "benchmarks").glob("*.py")]
    modules.remove("benchmarks.__init__")
    modules += ["benchmarks.accelerator", "bayesnorm.serving", "trainers.launch"]
    modules += ["bayesnorm.serving.tune_batching", "bayesnorm.datasets.convert"]
    own = (define(*program.all_groups) for program in _PROGRAMS.values())
    return set().union(*own, *map(defined_in, modules))


@pytest.mark.parametrize("page", PAGES)
def test_flags_that_the_prose_names_are_some_programs(page):
    named = {
        name
        for span in spans(page)
        for name in re.findall(r"(?:^|\s)--(\w[\w-]*)", span)
    }
    assert named - every_flag() - OTHERS == set()


def test_an_unknown_flag_is_found():
    with pytest.raises(absl_flags.Error, match="kl_facto"):
        check("trainers.sbp", ["--kl_facto=2"])
    with pytest.raises(AssertionError):
        check("benchmarks.laws", ["--sample=3"])
    with pytest.raises(absl_flags.Error, match="epoch"):
        check("trainers.launch", ["--workers=2", "--", "trainers.sbn", "--epoch=2"])
    assert len(list(commands("docs/guides/pruning.md"))) == 2


def test_readme_says_the_two_commands():
    """They are what the package promises, and what is run in a clean environment."""
    first, second = blocks("README.md", "")[:2]
    assert first == "pip install -e . && python -m trainers.all_cnn\n"
    assert second == 'pip install -e ".[test]" && pytest\n'
    assert "pip install -q -e ." in text(".ci/run")
