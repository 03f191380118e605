"""Links and pictures lead somewhere, and the API pages have every public name."""

import importlib
import re

import pytest

import bayesnorm
from tests.docs.pages import PAGES, ROOT, prose, text

API = "\n".join(path.read_text("utf-8") for path in (ROOT / "docs/api").glob("*.md"))
DOCUMENTED = re.findall(r"^::: (\S+)$", API, re.MULTILINE)
ROOMS = (
    "layers",
    "moments",
    "samplers",
    "plots",
    "models",
    "datasets",
    "pruning",
    "training",
)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    folder = (ROOT / page).parent
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    wrong = [
        link
        for link in links
        if not link.startswith(("http", "#"))
        and not (folder / link.partition("#")[0]).is_file()
    ]
    assert wrong == []


def test_the_api_has_what_is_public():
    last = {name.rpartition(".")[2] for name in DOCUMENTED}
    modules = {"conformal", "metrics", "priors", *ROOMS}
    assert set(bayesnorm.__all__) - modules - {"__version__"} <= last
    for room in ROOMS:
        module = importlib.import_module(f"bayesnorm.{room}")
        public = {name for name in module.__all__ if not name.isupper()}
        assert public <= last, room


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_the_api_documents_is_there(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith(error.name or "-"):
            pytest.skip(f"needs {error.name}")
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


def test_pages_of_the_site_are_in_its_navigation():
    found = set(re.findall(r"[\w/]+\.md", text("mkdocs.yml")))
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in ROOT.glob("docs/**/*.md")}
    assert pages <= found
