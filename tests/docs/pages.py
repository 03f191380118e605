"""The pages that people read, and what is in them."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
# Those with code that runs.
GUIDES = (
    "README.md",
    "docs/index.md",
    *sorted(
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "docs/guides").glob("*.md")
    ),
)
PAGES = (
    *GUIDES,
    "CONTRIBUTING.md",
    "benchmarks/RESULTS.md",
    "docs/peers.md",
    "docs/examples/index.md",
    *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs/api").glob("*.md")),
)
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def text(page):
    """The Markdown of a page."""
    return (ROOT / page).read_text("utf-8")


def blocks(page, language):
    """The blocks of a language, in order; `""` for those that name none."""
    return [code for name, code in _FENCE.findall(text(page)) if name == language]


def prose(page):
    """The page without its blocks."""
    return _FENCE.sub("", text(page))


def spans(page):
    """The code in the prose."""
    return re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))
