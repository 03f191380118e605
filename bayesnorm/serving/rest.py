"""Requests and answers in the JSON of TensorFlow Serving's REST API.

Reference: https://www.tensorflow.org/tfx/serving/api_rest
"""

import base64
import binascii
import dataclasses
import json
import re

import numpy as np

_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d{1,19}))?"
    r"(?P<verb>:predict|/metadata)?"
)
# What JSON numbers a dtype takes: NumPy's kinds.
_KINDS = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        message: What was expected, and what came.
        status: The status of HTTP.
    """

    def __init__(self, message, status=400):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of a signature.

    Args:
        dtype: NumPy's name of the dtype, or `"string"`.
        shape: Its shape, the batch first; None for an open length.
    """

    dtype: str
    shape: tuple

    def __str__(self):
        lengths = ["any" if n is None else str(n) for n in self.shape[1:]]
        return f"{self.dtype} [{', '.join(['batch', *lengths])}]"


@dataclasses.dataclass(frozen=True)
class Request:
    """A request to predict.

    Args:
        signature: Name of the signature.
        inputs: Dict of arrays, the batch first, as the signature wants them.
        rows: Whether it came by rows (`instances`), as the answer then goes.
    """

    signature: str
    inputs: dict
    rows: bool

    @property
    def examples(self):
        """The number of examples."""
        return len(next(iter(self.inputs.values())))


def parse_path(path):
    """Returns `(model's name, version or None, ":predict", "/metadata" or "")`.

    Raises:
        RequestError: If the path is another.
    """
    found = _PATH.fullmatch(path)
    if not found:
        raise RequestError(
            "Expected /v1/models/NAME[/versions/N] and then nothing, :predict or "
            f"/metadata. Received: {path[:200]!r}",
            404,
        )
    version = found["version"]
    return found["name"], version and int(version), found["verb"] or ""


def parse(body, signatures):
    """Reads the body of a request to predict.

    Args:
        body: The bytes: an object of JSON with `inputs` (an array a name, or the array
            of the only input) or `instances` (a list of examples), and with
            `signature_name`, `"serving_default"` where it is left out.
        signatures: For each name of a signature a dict of `Input`s by name.

    Returns:
        A `Request`, whose arrays a signature takes.

    Raises:
        RequestError: If the body is something else, or an input has another dtype,
            shape or number of examples than the signature says.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"Expected JSON. Received: {error}") from error
    if not isinstance(content, dict) or ("inputs" in content) == (
        "instances" in content
    ):
        keys = list(content) if isinstance(content, dict) else type(content).__name__
        raise RequestError(
            "Expected an object with either `inputs` (arrays) or `instances` (a list "
            f"of examples). Received: {_short(keys)}"
        )
    name = content.get("signature_name", "serving_default")
    if not isinstance(name, str) or name not in signatures:
        raise RequestError(
            f"`signature_name` must be one of {sorted(signatures)}. "
            f"Received: {_short(name)}"
        )
    expected, rows = signatures[name], "instances" in content
    columns = (_of_rows if rows else _of_columns)(
        content["instances" if rows else "inputs"], expected
    )
    if columns.keys() != expected.keys():
        raise RequestError(
            f"Signature {name!r} takes {_listed(expected)}. "
            f"Received: {_short(sorted(columns))}"
        )
    inputs = {key: _array(key, columns[key], expected[key]) for key in expected}
    lengths = {key: len(x) for key, x in inputs.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise RequestError(
            "Every input needs one entry for each example, and there must be one "
            f"example at least. Received entries: {lengths}"
        )
    return Request(name, inputs, rows)


def answer(outputs, rows):
    """Returns the answer to a request, as bytes of JSON.

    Args:
        outputs: Dict of arrays, the batch first.
        rows: `Request.rows`.
    """
    lists = {name: x.tolist() for name, x in outputs.items()}
    if not rows:
        only = next(iter(lists.values())) if len(lists) == 1 else lists
        return _dumped({"outputs": only})
    if len(lists) == 1:
        return _dumped({"predictions": next(iter(lists.values()))})
    examples = zip(*lists.values(), strict=True)
    return _dumped(
        {"predictions": [dict(zip(lists, each, strict=True)) for each in examples]}
    )


def error(message):
    """Returns an error's answer, as bytes of JSON."""
    return _dumped({"error": message})


def model_status(versions):
    """Returns the answer to a question for a model's status, as bytes of JSON.

    Args:
        versions: Dict from a version to None, or to why it cannot be loaded.
    """
    return _dumped(
        {
            "model_version_status": [
                {
                    "version": str(version),
                    "state": "AVAILABLE" if failure is None else "END",
                    "status": {
                        "error_code": "OK" if failure is None else "UNKNOWN",
                        "error_message": failure or "",
                    },
                }
                for version, failure in sorted(versions.items(), reverse=True)
            ]
        }
    )


def model_metadata(name, version, signatures):
    """Returns the answer to a question for a model's signatures, as bytes of JSON.

    Args:
        name: The model's name.
        version: Its version.
        signatures: The `SignatureDef`s, as dicts by name.
    """
    return _dumped(
        {
            "model_spec": {
                "name": name,
                "signature_name": "",
                "version": str(version),
            },
            "metadata": {"signature_def": {"signature_def": signatures}},
        }
    )


def _of_columns(content, expected):
    if isinstance(content, dict) and not _is_bytes(content):
        return content
    return _only(content, expected)


def _of_rows(content, expected):
    if not isinstance(content, list) or not content:
        raise RequestError(
            "`instances` must be a list of examples, one at least. "
            f"Received: {_short(content)}"
        )
    named = [isinstance(row, dict) and not _is_bytes(row) for row in content]
    if not any(named):
        return _only(content, expected)
    if not all(named) or any(row.keys() != content[0].keys() for row in content):
        raise RequestError(
            f"Every one of `instances` must be an object with the same of "
            f"{_listed(expected)}. Received others among them."
        )
    return {name: [row[name] for row in content] for name in content[0]}


def _only(content, expected):
    if len(expected) > 1:
        raise RequestError(
            f"The signature takes {_listed(expected)}: name them. "
            f"Received: {_short(content)}"
        )
    return {name: content for name in expected}


def _array(name, content, expected):
    try:
        x = _converted(content, expected.dtype)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RequestError(f"Input {name!r} is {expected}. Received: {error}") from None
    fits = x.ndim == len(expected.shape) and all(
        n in (None, m) for n, m in zip(expected.shape[1:], x.shape[1:], strict=True)
    )
    if not fits:
        raise RequestError(
            f"Input {name!r} is {expected}. Received the shape {list(x.shape)}"
        )
    return x


def _converted(content, dtype):
    if dtype == "string":
        return np.array(_texts(content), object)
    x, dtype = np.array(content), np.dtype(dtype)
    # An empty list has no dtype of its own.
    if x.size and x.dtype.kind not in _KINDS.get(dtype.kind, dtype.kind):
        raise ValueError(f"values of another kind, {_short(content)}")
    if dtype.kind in "iu" and x.size:
        range_ = np.iinfo(dtype)
        if x.min() < range_.min or x.max() > range_.max:
            raise ValueError(f"integers outside [{range_.min}, {range_.max}]")
    with np.errstate(over="ignore"):
        converted = x.astype(dtype)
    if dtype.kind == "f" and (np.isfinite(x) & ~np.isfinite(converted)).any():
        raise ValueError(f"numbers above {np.finfo(dtype).max:g}")
    return converted


def _texts(content):
    if isinstance(content, list):
        return [_texts(each) for each in content]
    if isinstance(content, str):
        return content.encode()
    if _is_bytes(content):
        try:
            return base64.b64decode(content["b64"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"no base64: {error}") from error
    raise ValueError(f'something else than text or {{"b64": ...}}, {_short(content)}')


def _is_bytes(content):
    return isinstance(content, dict) and content.keys() == {"b64"}


def _listed(expected):
    return ", ".join(f"{name!r}: {spec}" for name, spec in expected.items())


def _short(content):
    text = repr(content[:4] if isinstance(content, list) else content)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _dumped(content):
    return json.dumps(content, separators=(",", ":")).encode()
