"""What is held against the model card of a run: its figures, and its code."""

import json
import re

import pytest

from bayesnorm import metrics

# Title of a row -> the name in `metrics.json` without the method's.
_ROWS = {
    "error, %": "test/error",
    "IoU, %": "test/iou",
    "NLL, nats": "test/nll",
    "Brier score": "test/brier",
    "ECE, %": "test/ece_equal_width",
    "AURC, %": "test/aurc",
    "entropy, nats": "test/entropy",
    "temperature": "validation/temperature",
    "NLL at T, nats": "test/tempered_nll",
    "size of 90 % sets": "test/set_size_of_90",
    "OOD AUROC, %": "ood/auroc",
    "OOD FPR, %": "ood/fpr_at_95_tpr",
}


def sections_of(path):
    """Returns the header and the texts of the sections of a card, by heading."""
    page = (path / "model_card.md").read_text("utf-8")
    start, header, body = page.split("---\n", 2)
    assert start == ""
    _, *parts = re.split(r"^## (.*)\n", body, flags=re.MULTILINE)
    return header, dict(zip(parts[::2], parts[1::2], strict=True))


def figures_of(path):
    """Returns the figures of a run, whole, by key, and the key of its method."""
    content = json.loads((path / "metrics.json").read_text("utf-8"))
    return content["figures"], content["shown"]


def shown_value(text):
    """Returns a number of a table, its deviation or None, and half its last digit."""
    value, _, stddev = text.partition(" ± ")
    decimals = len(value.partition(".")[2])
    return float(value), float(stddev) if stddev else None, 0.501 * 10**-decimals


def check_figures(path, shown):
    """Checks that the table and the header are those of `metrics.json`."""
    header, sections = sections_of(path)
    figures, key = figures_of(path)
    assert key == shown
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in sections["Figures"].splitlines()
        if line.startswith("| ")
    ]
    found = {title: cells for title, *cells in rows}
    expected = {t: f"{name}_{shown}" for t, name in _ROWS.items()}
    expected = {t: name for t, name in expected.items() if name in figures}
    assert {"error, %", "NLL, nats"} <= expected.keys() <= found.keys()
    assert len(expected) > 6
    for title, name in expected.items():
        value, stddev, precision = shown_value(found[title][0])
        assert value == pytest.approx(figures[name]["value"], abs=precision), title
        assert stddev == pytest.approx(figures[name].get("stddev"), abs=precision)
    said = re.findall(r"- type: (\w+)\n +name: .*\n +value: (.*)", header)
    assert {"accuracy", "error", "nll"} <= dict(said).keys()
    for figure, value in said:
        assert json.loads(value) == figures[f"test/{figure}_{shown}"]["value"]


def check_code(path, splits, name, monkeypatch):
    """Checks that the code of the card gives a network of the figure `name`."""
    _, sections = sections_of(path)
    code = re.search(r"```python\n(.*?)```", sections["How to use it"], re.DOTALL)[1]
    monkeypatch.chdir(path)
    names = {}
    exec(compile(code, "model_card.md", "exec"), names)
    prediction = names["predict"](splits.test.images)
    nll = metrics.nll(prediction.probs, splits.test.labels)
    assert nll == pytest.approx(figures_of(path)[0][name]["value"], rel=1e-4)
