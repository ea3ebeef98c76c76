"""The local language models that settings declare: endpoints that come up in the background, and their LoRA adapters.

An adapter is an endpoint of its own, `ENDPOINT:ADAPTER`, so that grants, limits and the journal know it by name.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import APIRouter, Depends, Request
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from governance.call import Call, Caller, Event, bad_request, forbidden, not_found
from serving.endpoint import Endpoint, Endpoints
from serving.engines.gguf import GgufModel
from serving.engines.http_process import HttpProcess
from serving.engines.local import LocalModel, Weights
from serving.engines.supervised import LoadFailed
from serving.entities import DEPLOYMENT, Entity
from serving.protocols.request import parse, take
from serving.routes import read_body

if TYPE_CHECKING:
    from serving.declarations import LocalModel as Declared

log = logging.getLogger("smalti")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_MAX_ADAPTERS = 64


class Adaptable(Entity, Protocol):
    """A local model: an entity that answers with an adapter too."""

    @property
    def adapters(self) -> list[str]: ...

    def answer(self, call: Call, adapter: str | None = None) -> AsyncIterator[Event]: ...

    async def load_adapter(self, name: str, path: str) -> None: ...

    async def unload_adapter(self, name: str) -> None: ...


@dataclass
class _Served:
    model: Adaptable
    endpoint: Endpoint
    work: asyncio.Task[None] | None = None


class Locals(Collector):
    """Local models by endpoint; as a Prometheus collector it gives what their engines count.

    Parameters
    ----------
    endpoints: the registry that serves.
    home: the state folder, for logs and for environments of engines.
    loads: bounds how many models are loaded at the same time.
    """

    def __init__(self, endpoints: Endpoints, home: Path, loads: asyncio.Semaphore) -> None:
        self._endpoints, self._home, self._loads = endpoints, home.resolve(), loads
        self._served: dict[str, _Served] = {}

    def declare(self, name: str, declared: Declared, description: str = "") -> None:
        """Register an endpoint; its model is loaded by `start`."""
        model = self._make(name, declared)
        entity = {"name": name, "entity_name": declared.path, "foundation_model": {"name": declared.path}}
        endpoint = Endpoint(name, "llm/v1/chat", model.engine, entity=entity, description=description)
        served = self._served[name] = _Served(model, endpoint)
        self._endpoints.register(replace(endpoint, live=lambda: _live(endpoint, model)))
        for adapter in model.adapters:
            self._register(served, adapter)

    def _make(self, name: str, declared: Declared) -> Adaptable:
        log_file = self._home / "logs" / name / "model.log"
        path = str(Path(declared.path).expanduser().resolve()) if Path(declared.path).expanduser().exists() else declared.path
        adapters = {each: str(folder.expanduser().resolve()) for each, folder in (declared.adapters or {}).items()}
        batch = declared.max_batch or (4 if declared.engine == "gguf" else 16)
        if declared.engine == "gguf":
            return GgufModel(
                path,
                log_file,
                binary=declared.binary,
                context=declared.context,
                max_batch=batch,
                threads=declared.threads,
                arguments=declared.args,
                max_open=batch + declared.max_queue,
                stall_timeout=declared.stall_timeout or 120,
            )
        if declared.engine == "vllm":
            from serving.engines.vllm import VllmModel

            python = declared.python or self._home / "engines" / "vllm" / "bin" / "python"
            lora = ["--enable-lora"] if declared.adapters is not None else []
            return VllmModel(
                path,
                log_file,
                python=Path(python),
                dtype=declared.dtype,
                context=declared.context,
                tensor_parallel=declared.tensor_parallel,
                adapters=adapters,
                arguments=[*lora, *declared.args],
                max_open=batch + declared.max_queue,
                stall_timeout=declared.stall_timeout or 8,
            )
        return LocalModel(
            Weights(path),
            log_file,
            device=declared.device,
            dtype=declared.dtype,
            context=declared.context,
            max_batch=batch,
            max_queue=declared.max_queue,
            adapters=adapters,
            threads=declared.threads,
            loads=self._loads,
        )

    def _register(self, served: _Served, adapter: str) -> None:
        def engine(call: Call) -> AsyncIterator[Event]:
            return served.model.answer(call, adapter)

        name = f"{served.endpoint.name}:{adapter}"
        entity = {**served.endpoint.entity, "name": adapter}
        made = replace(served.endpoint, name=name, engine=engine, entity=entity, description=f"LoRA adapter {adapter}.")
        self._endpoints.register(replace(made, live=lambda: _live(made, served.model)))

    # --- life ---

    def start(self) -> None:
        """Load the models, in the background. One that cannot be loaded says so in its endpoint's state."""
        for name, served in self._served.items():
            served.work = asyncio.create_task(self._load(name, served.model))

    async def _load(self, name: str, model: Adaptable) -> None:
        try:
            await model.start()
        except LoadFailed as error:
            log.warning("endpoint %s is not available: %s", name, error)

    async def close(self) -> None:
        for served in self._served.values():
            if served.work is not None and not served.work.done():
                served.work.cancel()
                await asyncio.wait([served.work])
        await asyncio.gather(*(served.model.stop(0) for served in self._served.values()), return_exceptions=True)

    # --- adapters ---

    def get(self, name: str) -> Adaptable:
        """The local model of an endpoint. Raises `CallError` (404)."""
        return self._find(name).model

    def _find(self, name: str) -> _Served:
        served = self._served.get(name)
        if served is None:
            raise not_found(f"Endpoint {name!r} is no local model of the server's settings; only those take adapters.")
        return served

    async def load_adapter(self, name: str, adapter: str, path: str) -> str:
        """Add a LoRA adapter while the model serves; gives its endpoint's name. Raises `CallError`."""
        served = self._find(name)
        if not _NAME.fullmatch(adapter):
            raise bad_request("Field 'lora_name' must be 1 to 63 letters, digits, '-', '_' and '.'.", "lora_name")
        if len(served.model.adapters) >= _MAX_ADAPTERS:
            raise bad_request(f"{name} has {_MAX_ADAPTERS} adapters already: unload one.", "lora_name")
        await served.model.load_adapter(adapter, path)
        self._register(served, adapter)
        return f"{name}:{adapter}"

    async def unload_adapter(self, name: str, adapter: str) -> None:
        """Take a LoRA adapter out; answers that use it end first. Raises `CallError`."""
        served = self._find(name)
        if adapter not in served.model.adapters:
            raise not_found(f"{name} has no adapter {adapter!r}; it has {', '.join(served.model.adapters) or 'none'}.")
        self._endpoints.remove(f"{name}:{adapter}")
        try:
            await served.model.unload_adapter(adapter)
        except BaseException:
            self._register(served, adapter)
            raise

    # --- metrics ---

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Any] = {}
        for name, served in self._served.items():
            if isinstance(model := served.model, HttpProcess):
                for metric, value in model.metrics.items():
                    if metric not in families:
                        made: Any = GaugeMetricFamily if model.passed[metric] == "gauge" else CounterMetricFamily
                        families[metric] = made(metric, f"As {model.program} counts it.", labels=["endpoint"])
                    families[metric].add_metric([name], value)
        yield from families.values()


def _live(endpoint: Endpoint, model: Adaptable) -> Mapping[str, Any]:
    state, message = model.state
    told = {"deployment": DEPLOYMENT[state], "deployment_state_message": message}
    config = replace(endpoint, live=None, entity={**endpoint.entity, "state": told}).to_api()["config"]
    ready = "READY" if state == "READY" else "NOT_READY"
    return {"state": {"ready": ready, "config_update": "NOT_UPDATING"}, "config": config}


def router(local: Locals, *, caller: Callable[..., Any]) -> APIRouter:
    """`GET` and `POST` of `/api/2.0/serving-endpoints/{name}/adapters`, `DELETE` of one, in the fields of vLLM's own API.

    An adapter is a folder of the server, so all of it takes an administrator.
    """
    routes = APIRouter(prefix="/api/2.0/serving-endpoints/{name}/adapters")

    def owner(who: Caller = Depends(caller)) -> Caller:
        if not who.admin:
            raise forbidden("Adapters are folders of the server: an administrator lists, loads and unloads them.")
        return who

    @routes.get("")
    async def listed(name: str, who: Caller = Depends(owner)) -> dict[str, Any]:
        return {"adapters": [{"lora_name": each, "endpoint": f"{name}:{each}"} for each in local.get(name).adapters]}

    @routes.post("")
    async def load(name: str, request: Request, who: Caller = Depends(owner)) -> dict[str, Any]:
        body = parse(await read_body(request, 1 << 16))
        adapter, path = take(body, "lora_name", str, required=True), take(body, "lora_path", str, required=True)
        return {"lora_name": adapter, "endpoint": await local.load_adapter(name, adapter, path)}

    @routes.delete("/{adapter}")
    async def unload(name: str, adapter: str, who: Caller = Depends(owner)) -> dict[str, Any]:
        await local.unload_adapter(name, adapter)
        return {"lora_name": adapter}

    return routes
