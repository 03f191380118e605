"""The examples run as they stand, and say what their page says."""

import os
import re
import subprocess
import sys

import keras
import pytest

from tests.docs.pages import ROOT, text

pytestmark = pytest.mark.slow
EXAMPLES = {
    "trained_network": ("reliability.png", "samples.png", "entropy.png"),
    "pruning": ("kept.png", "signal_to_noise.png"),
    "posterior": ("posterior.png",),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name, tmp_path):
    ran = subprocess.run(
        [sys.executable, ROOT / f"docs/examples/{name}.py", tmp_path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    for picture in EXAMPLES[name]:
        assert (tmp_path / picture).stat().st_size > 5000
        assert (ROOT / "docs/examples" / picture).stat().st_size < 100_000
    said = ran.stdout
    if name == "trained_network":
        inside, outside = re.search(r"entropy (\S+) nats .*, (\S+) on", said).groups()
        assert float(outside) > 3 * float(inside)
    elif name == "pruning":
        assert float(re.search(r"differ by ([\d.e-]+)", said)[1]) < 1e-5
        before, after = re.search(r"error (\S+) % before, (\S+) %", said).groups()
        assert float(after) < float(before) + 3
    elif keras.backend.backend() == "tensorflow":
        one, average = re.search(r"score (\S+) of a sample, (\S+) of", said).groups()
        assert float(average) < float(one)


def test_the_page_shows_every_picture():
    page = text("docs/examples/index.md")
    for name, pictures in EXAMPLES.items():
        assert f"({name}.py)" in page
        assert all(f"({picture})" in page for picture in pictures)
