"""The JSON of TensorFlow Serving's REST API, read and written; versions of a folder."""

import json

import numpy as np
import pytest

from bayesnorm.serving import rest
from bayesnorm.serving.versions import Versions, name_of, versions_in

ONE = {"inputs": rest.Input("float32", (None, 2))}
SEEDED = ONE | {"seed": rest.Input("int64", (None,))}
TEXT = {"text": rest.Input("string", (None,))}
ANY = {"inputs": rest.Input("float32", (None, None, 2))}
SIGNATURES = {"serving_default": ONE, "seeded": SEEDED, "text": TEXT, "any": ANY}


def parse(**content):
    return rest.parse(json.dumps(content).encode(), SIGNATURES)


def test_inputs_come_by_columns_or_by_rows():
    x, seeds = [[1, 2.5], [3, 4]], [2**63 - 1, -(2**63)]
    for request, rows in (
        (parse(inputs=x), False),
        (parse(inputs={"inputs": x}), False),
        (parse(instances=x), True),
        (parse(instances=[{"inputs": each} for each in x]), True),
    ):
        assert (request.signature, request.rows) == ("serving_default", rows)
        assert request.examples == 2
        assert request.inputs["inputs"].dtype == "float32"
        np.testing.assert_array_equal(request.inputs["inputs"], x)
    rows = [{"inputs": a, "seed": s} for a, s in zip(x, seeds, strict=True)]
    for content in ({"inputs": {"inputs": x, "seed": seeds}}, {"instances": rows}):
        request = parse(signature_name="seeded", **content)
        assert request.inputs["seed"].tolist() == seeds
        assert request.inputs["seed"].dtype == "int64"
    for key in ("inputs", "instances"):
        request = parse(signature_name="text", **{key: ["é", {"b64": "AAE="}]})
        assert request.inputs["text"].tolist() == ["é".encode(), b"\0\1"]
    assert parse(signature_name="any", inputs=[[[1, 2]] * 5]).examples == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "either `inputs`"),
        ({"inputs": [[1, 2]], "instances": [[1, 2]]}, "either `inputs`"),
        ({"inputs": [[1, 2]], "signature_name": "x"}, "must be one of"),
        ({"inputs": [[1, 2]], "signature_name": ["x"]}, "must be one of"),
        ({"inputs": {"x": [[1, 2]]}}, "takes 'inputs'"),
        ({"inputs": {"inputs": [[1, 2]], "x": [1]}}, "takes 'inputs'"),
        ({"inputs": [[1, 2], [3]]}, r"float32 \[batch, 2\]"),
        ({"inputs": [[1, 2, 3]]}, r"Received the shape \[1, 3\]"),
        ({"inputs": [1, 2]}, r"Received the shape \[2\]"),
        ({"inputs": 1}, r"Received the shape \[\]"),
        ({"inputs": []}, "shape"),
        ({"inputs": np.zeros((0, 2)).tolist()}, "shape"),
        ({"inputs": [["a", "b"]]}, "another kind"),
        ({"inputs": [[True, False]]}, "another kind"),
        ({"inputs": [[None, 1]]}, "another kind"),
        ({"inputs": [[1e300, 1]]}, "numbers above"),
        ({"instances": []}, "one at least"),
        ({"instances": {"inputs": [1, 2]}}, "list of examples"),
        ({"instances": [{"inputs": [1, 2]}, [1, 2]]}, "same of"),
        ({"instances": [[1, 2]], "signature_name": "seeded"}, "name them"),
        ({"inputs": [1.5], "signature_name": "text"}, "than text"),
        ({"inputs": [{"b64": "?"}], "signature_name": "text"}, "base64"),
    ],
)
def test_what_is_wrong_is_said(content, message):
    with pytest.raises(rest.RequestError, match=message) as error:
        parse(**content)
    assert error.value.status == 400


@pytest.mark.parametrize(
    ("seed", "message"),
    [([1], "one entry for each"), ([1.5, 2], "another kind"), ([2**63] * 2, "outside")],
)
def test_seeds_are_checked(seed, message):
    x = [[1, 2], [3, 4]]
    with pytest.raises(rest.RequestError, match=message):
        parse(signature_name="seeded", inputs={"inputs": x, "seed": seed})


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"3", b"[]"])
def test_what_is_no_object_of_json(body):
    with pytest.raises(rest.RequestError, match="Expected"):
        rest.parse(body, SIGNATURES)


def test_answers_go_as_requests_came():
    one = {"probs": np.array([[0.25, 0.75], [1, 0]], "float32")}
    both = one | {"entropy": np.array([0.5, 0], "float32")}
    probs = one["probs"].tolist()
    assert json.loads(rest.answer(one, False)) == {"outputs": probs}
    assert json.loads(rest.answer(one, True)) == {"predictions": probs}
    expected = {"probs": probs, "entropy": [0.5, 0]}
    assert json.loads(rest.answer(both, False)) == {"outputs": expected}
    rows = [{"probs": probs[0], "entropy": 0.5}, {"probs": probs[1], "entropy": 0}]
    assert json.loads(rest.answer(both, True)) == {"predictions": rows}


def test_paths():
    assert rest.parse_path("/v1/models/a:predict") == ("a", None, ":predict")
    assert rest.parse_path("/v1/models/a") == ("a", None, "")
    assert rest.parse_path("/v1/models/a/metadata") == ("a", None, "/metadata")
    found = rest.parse_path("/v1/models/a/versions/12:predict")
    assert found == ("a", 12, ":predict")
    for path in ("/", "/v1/models/a:classify", "/v1/models/a/versions/x", "/v2/x"):
        with pytest.raises(rest.RequestError, match="Expected /v1") as error:
            rest.parse_path(path)
        assert error.value.status == 404


def make_version(folder, number, text="model"):
    (folder / str(number)).mkdir(parents=True)
    (folder / str(number) / "saved_model.pb").write_text(text)


def load(path):
    text = (path / "saved_model.pb").read_text()
    if text == "broken":
        raise OSError("no model")
    return path.name


def test_versions_follow_the_folder(tmp_path):
    folder = tmp_path / "digits"
    assert versions_in(folder) == {}
    versions = Versions(folder, load)
    versions.refresh()
    with pytest.raises(KeyError, match="No version"):
        versions.get()
    for number in (9, 10):
        make_version(folder, number)
    (folder / "11").mkdir()  # Nothing in it.
    (folder / "drafts").mkdir()
    assert set(versions_in(folder)) == {9, 10}
    assert versions_in(folder / "9") == {9: folder / "9"}
    assert name_of(folder) == name_of(folder / "9") == "digits"
    versions.refresh()
    assert versions.get() == (10, "10")
    with pytest.raises(KeyError, match=r"these are: \[10\]"):
        versions.get(9)
    make_version(folder, 12, "broken")
    versions.refresh()
    assert versions.get() == (10, "10")
    assert versions.status() == {10: None, 12: "OSError: no model"}
    (folder / "12/saved_model.pb").write_text("mended")
    versions.refresh()
    assert versions.status() == {12: None}
    (folder / "12").rename(tmp_path / "gone")
    versions.refresh()
    assert versions.get() == (10, "10")
    folder.rename(tmp_path / "other")
    versions.refresh()
    assert versions.get() == (10, "10")


def test_versions_side_by_side(tmp_path):
    for number in (1, 2, 3):
        make_version(tmp_path, number)
    chosen = Versions(tmp_path, load, only=[1, 3])
    latest = Versions(tmp_path, load, keep=2)
    for versions, expected in ((chosen, {1, 3}), (latest, {2, 3})):
        versions.refresh()
        assert versions.status() == dict.fromkeys(expected)
        assert versions.get() == (3, "3")
        assert versions.get(min(expected))[1] == str(min(expected))
    # One that does not load takes no other's place.
    make_version(tmp_path, 4, "broken")
    latest.refresh()
    assert latest.status() == {2: None, 3: None, 4: "OSError: no model"}
