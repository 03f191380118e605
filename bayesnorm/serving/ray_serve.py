"""Replicas of an exported model on Ray Serve, with dynamic batches.

Imported only to serve: `pip install "bayesnorm[serve]"`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import logging
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.responses import Response

from bayesnorm.serving import rest
from bayesnorm.serving.versions import Versions, name_of, versions_in
from bayesnorm.types import StrPath

_ADDRESS = "127.0.0.1"
_LOG = logging.getLogger(__name__)
# Requests that wait in a proxy; those above are answered with status 503 at once.
_WAITING = 1000


@dataclasses.dataclass(frozen=True)
class Options:
    """How a replica serves.

    Args:
        versions: Versions to serve; empty for the latest.
        keep: How many of the latest to serve.
        max_batch_size: Most examples of a batch of several requests.
        batch_wait_timeout_ms: How long the first request of a batch waits for others,
            in milliseconds.
        poll_seconds: Time between looks for new versions; 0 for none.
        max_request_bytes: Longest body of a request.
        threads: TensorFlow's threads; 0 for its own choice.
    """

    versions: tuple = ()
    keep: int = 1
    max_batch_size: int = 32
    batch_wait_timeout_ms: float = 5.0
    poll_seconds: float = 2.0
    max_request_bytes: int = 16 << 20
    threads: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """A request and what serves it."""

    servable: object
    request: rest.Request

    @property
    def kind(self):
        """What calls have in common that run as one batch."""
        shapes = ((name, x.shape[1:]) for name, x in self.request.inputs.items())
        return id(self.servable), self.request.signature, tuple(shapes)


def _examples(calls):
    return sum(call.request.examples for call in calls)


def run_together(calls: list[Any]) -> list[Any]:
    """Runs calls as one batch for each kind of them.

    Args:
        calls: List of calls.

    Returns:
        For each call its outputs, a dict of arrays, or the exception that it raised.
    """
    kinds, answers = {}, [None] * len(calls)
    for i, call in enumerate(calls):
        kinds.setdefault(call.kind, []).append(i)
    for members in kinds.values():
        found = _run_kind([calls[i] for i in members])
        for i, outputs in zip(members, found, strict=True):
            answers[i] = outputs
    return answers


def _run_kind(calls):
    requests = [call.request for call in calls]
    inputs = {
        name: np.concatenate([request.inputs[name] for request in requests])
        for name in requests[0].inputs
    }
    try:
        outputs = calls[0].servable.run(requests[0].signature, inputs)
    except Exception as error:
        if len(calls) == 1:
            return [error]
        # What the values of one request did must not fail the others.
        return [_run_kind([call])[0] for call in calls]
    ends = np.cumsum([request.examples for request in requests])
    parts = {name: np.split(x, ends[:-1]) for name, x in outputs.items()}
    return [dict(zip(parts, each, strict=True)) for each in zip(*parts.values())]  # noqa: B905


class Replica:
    """Answers HTTP requests to a model, in the layout of TensorFlow Serving's REST API.

    Args:
        name: The model's name.
        path: Its folder, or that of a version.
        options: `Options`.
    """

    def __init__(self, name: str, path: StrPath, options: Options) -> None:
        # TensorFlow is the replica's alone: the process that deploys needs none.
        from bayesnorm.serving.servable import Servable, use_threads

        logging.basicConfig()
        logging.getLogger("bayesnorm").setLevel(logging.INFO)
        if options.threads:
            use_threads(options.threads)
        self._name, self._options = name, options
        self._versions = Versions(path, Servable, options.versions, options.keep)
        self._versions.refresh()
        _, servable = self._versions.get()
        servable.probe()
        # One thread: a batch after the other. JSON is read in others.
        self._runner = concurrent.futures.ThreadPoolExecutor(1)
        # A decorated method would share its queue with all objects of the class.
        self._batched = serve.batch(
            max_batch_size=options.max_batch_size,
            batch_wait_timeout_s=options.batch_wait_timeout_ms / 1000,
            batch_size_fn=_examples,
        )(self._run)
        self._watch = None

    async def __call__(self, request: Any) -> Any:
        """Answers a request, a Starlette one."""
        self._start_watch()
        try:
            return _json(await self._answer(request))
        except rest.RequestError as error:
            return _json(rest.error(str(error)), error.status)

    async def check_health(self) -> None:
        """Raises if the latest version does not answer; Ray then replaces the replica."""  # noqa: E501
        self._start_watch()
        _, servable = self._versions.get()
        await asyncio.get_running_loop().run_in_executor(self._runner, servable.probe)

    async def _answer(self, request):
        name, version, verb = rest.parse_path(request.url.path)
        if name != self._name:
            raise rest.RequestError(
                f"The model served here is {self._name!r}. Received: {name!r}", 404
            )
        method = "POST" if verb == ":predict" else "GET"
        if request.method != method:
            raise rest.RequestError(
                f"Expected {method}. Received: {request.method}", 405
            )
        if not verb and version is None:
            return rest.model_status(self._versions.status())
        try:
            version, servable = self._versions.get(version)
        except KeyError as error:
            raise rest.RequestError(error.args[0], 404) from error
        if not verb:
            return rest.model_status({version: None})
        if verb == "/metadata":
            return rest.model_metadata(name, version, servable.definitions())
        body = await self._body(request)
        asked = await asyncio.to_thread(rest.parse, body, servable.signatures)
        outputs = await self._outputs(_Call(servable, asked))
        return await asyncio.to_thread(rest.answer, outputs, asked.rows)

    async def _body(self, request):
        most, body = self._options.max_request_bytes, bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise rest.RequestError(
                    f"A request has {most} bytes at most (--max_request_mb). Send "
                    "fewer examples at once.",
                    413,
                )
        return bytes(body)

    async def _outputs(self, call):
        if call.request.examples > self._options.max_batch_size:
            (outputs,) = await self._run([call])
        else:
            outputs = await self._batched(call)
        if isinstance(outputs, ValueError):
            raise rest.RequestError(str(outputs))
        if isinstance(outputs, Exception):
            _LOG.error("A request failed.", exc_info=outputs)
            raise rest.RequestError(f"The model failed: {outputs}", 500)
        return outputs

    async def _run(self, calls):
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._runner, run_together, calls)

    def _start_watch(self):
        # Not in the constructor, which runs outside the loop of the requests.
        if self._watch is None and self._options.poll_seconds > 0:
            self._watch = asyncio.create_task(self._keep_up())

    async def _keep_up(self):
        while True:
            await asyncio.sleep(self._options.poll_seconds)
            try:
                await asyncio.to_thread(self._versions.refresh)
            except OSError:
                _LOG.exception("The model's folder cannot be read.")


def _json(content, status=200):
    return Response(content, status, media_type="application/json")


def start(
    path: StrPath,
    name: str | None = None,
    replicas: int = 1,
    options: Options | None = None,
    host: str = _ADDRESS,
    port: int = 8000,
    gpus: float = 0.0,
    address: str | None = None,
) -> str:
    """Serves a model, and returns when it answers.

    Args:
        path: A model's folder with a folder of an integer name for each version, or
            that of a version. Every machine of a cluster must see it.
        name: The model's name in addresses; None for that of its folder.
        replicas: Number of processes that answer, a logical CPU of Ray each.
        options: `Options`, None for the defaults.
        host: Address to listen at.
        port: Port to listen at.
        gpus: GPUs of a replica, or the share of one.
        address: Address of a cluster of Ray; None to start Ray on this machine alone.

    Returns:
        The model's address.

    Raises:
        ValueError: If there is no such model or version, or there are fewer CPUs than
            replicas.
    """
    options = options or Options()
    name = name or name_of(path)
    _check_versions(path, options.versions)
    if not ray.is_initialized():
        # Processes of one machine need not be reached from others.
        local: dict[str, Any] = {
            "include_dashboard": False,
            "_node_ip_address": _ADDRESS,
        }
        ray.init(address=address, **({} if address else local))
    cpus = int(ray.cluster_resources().get("CPU", 0))
    if replicas > cpus:
        raise ValueError(
            f"Ray gives each replica a CPU, of which it has {cpus}. Expected as many "
            f"replicas at most, or a larger cluster. Received: replicas={replicas}"
        )
    serve.start(http_options={"host": host, "port": port})
    made: Any = serve.deployment(Replica)
    deployment = made.options(
        name=name,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": gpus},
        # A batch that runs, and the next one that fills meanwhile.
        max_ongoing_requests=max(16, 2 * options.max_batch_size),
        max_queued_requests=_WAITING,
    )
    # A line for each request would cost more than the request of a small model.
    serve.run(
        deployment.bind(name, str(path), options),
        name=name,
        logging_config={"enable_access_log": False},
    )
    return f"http://{host}:{port}/v1/models/{name}"


def stop(path: StrPath, name: str | None = None) -> None:
    """Ends what `start` began, and leaves a cluster of others running.

    Args:
        path: As of `start`.
        name: As of `start`.
    """
    if ray.is_initialized():
        serve.delete(name or name_of(path))
        ray.shutdown()


def _check_versions(path, versions):
    found = versions_in(path)
    missing = sorted(set(versions) - found.keys())
    if not found or missing:
        raise ValueError(
            "Expected a folder with a SavedModel in a folder for each version, as "
            f"bayesnorm.export(model, '{path}/1') writes it. Received: {path}, with "
            f"the versions {sorted(found)}"
            + (f" and without {missing}" if missing else "")
        )
