"""What is packed: the packages, their types and configurations, and no tests."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("bayesnorm", "trainers", "benchmarks")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """The names of the files in the wheel of a copy of the tree, with its tests."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "tests"):
        ignored = shutil.ignore_patterns("results", "__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    # Without an index: what builds it is installed.
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index"]
    build += ["--no-build-isolation", "-q", "-w", str(folder), str(folder / "source")]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("bayesnorm-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_has_every_module(names):
    modules = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules == {name for name in names if name.endswith(".py")}
    assert "bayesnorm/types.py" in modules


def test_the_wheel_has_types_and_configurations(names):
    assert "bayesnorm/py.typed" in names
    configs = {str(p.relative_to(ROOT)) for p in ROOT.glob("trainers/configs/*.ini")}
    assert configs
    assert configs <= names


def test_the_wheel_has_nothing_else(names):
    tops = {name.partition("/")[0] for name in names}
    (info,) = tops - set(PACKAGES)
    assert info.endswith(".dist-info")
    assert {pathlib.PurePath(name).suffix for name in names if info not in name} == {
        ".py",
        ".typed",
        ".ini",
    }
