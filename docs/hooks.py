"""Pages of the site that lie outside docs/: results and CONTRIBUTING.

Links in Markdown are relative to the file, as where the repository is read without
the site. In the site docs/ is the root, so that those that cross its border have one
`../` more than they need.
"""

import pathlib
import re

from mkdocs.structure.files import File

_ROOT = pathlib.Path(__file__).parents[1]
_OUTSIDE = ("CONTRIBUTING.md", "benchmarks/RESULTS.md", "benchmarks/results/**/*.md")
_BESIDE = ("benchmarks/results/**/*.png", "benchmarks/results/**/*.json")
_OUT_OF_DOCS = re.compile(r"\]\((\.\./)+(?=benchmarks/|CONTRIBUTING\.md)")
_INTO_DOCS = re.compile(r"(?<=\]\()((?:\.\./)*)docs/")


def on_files(files, config):
    """Adds the files outside docs/ under the names that they have there."""
    for pattern in (*_OUTSIDE, *_BESIDE):
        for path in sorted(_ROOT.glob(pattern)):
            name = path.relative_to(_ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, **_):
    """Makes links across the border of docs/ those of the site."""
    if (_ROOT / page.file.src_uri).is_file():
        return _INTO_DOCS.sub(r"\1", markdown)
    return _OUT_OF_DOCS.sub(lambda link: link[0].removesuffix("../"), markdown)
