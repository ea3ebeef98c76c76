"""Served entities: a checked configuration turned into something that runs, whichever engine runs it."""

from __future__ import annotations

import asyncio
import os
import secrets as random
import shutil
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Engine as Database
from sqlalchemy import delete, insert, select

from governance.call import Call, Engine, Event, bad_request, unavailable
from serving.config import TASKS, check_upstream, flat, reach_of
from serving.engines import pyfunc
from serving.engines.environment import Environments
from serving.engines.external import ExternalChat, Timeouts, Upstream
from serving.engines.forks import ForkServer
from serving.engines.local import LocalModel, weights_of
from serving.engines.process import ModelProcess
from serving.engines.providers import NO_KEY, key_of, upstream_of
from serving.engines.replicas import SIZES, Replicas
from serving.engines.supervised import Entrusted, Runs
from serving.registry import ModelVersion, Registry
from serving.secrets.scopes import Scopes, cipher, is_reference
from serving.tables import secrets as table

DEPLOYMENT = {
    "CREATING": "DEPLOYMENT_CREATING",
    "READY": "DEPLOYMENT_READY",
    "RECOVERING": "DEPLOYMENT_RECOVERING",
    "FAILED": "DEPLOYMENT_FAILED",
}
"""An entity's state in the words of the REST API."""
_REFERENCE = "secret:"


class Entity(Runs, Protocol):
    """One served entity that runs. `engine` answers a call, and waits where the entity is still coming up."""

    @property
    def engine(self) -> Engine: ...

    @property
    def version(self) -> str | None: ...


class Vault:
    """Secrets of served entities, encrypted under a key made from the state folder's pepper. Blocking.

    `scopes` has those that a config only refers to.
    """

    def __init__(self, database: Database, pepper: Path, scopes: Scopes | None = None) -> None:
        self._database, self._pepper = database, pepper
        self.scopes = scopes or Scopes(database, pepper)

    def _cipher(self) -> Any:
        return cipher(self._pepper, b"smalti serving secrets")

    def keep(self, endpoint: str, values: Mapping[str, str]) -> None:
        """Store secrets by the references that `reference` gave."""
        cipher = self._cipher()
        rows = [
            {"id": key.removeprefix(_REFERENCE), "endpoint": endpoint, "value": cipher.encrypt(value.encode()).decode()}
            for key, value in values.items()
        ]
        if rows:
            with self._database.begin() as connection:
                connection.execute(insert(table), rows)

    @staticmethod
    def reference() -> str:
        return _REFERENCE + random.token_hex(16)

    def read(self, reference: str) -> str:
        """The secret of a reference that `reference` gave, or of `{{secrets/SCOPE/KEY}}`. Raises `CallError`."""
        if is_reference(reference):
            return self.scopes.resolved(reference)
        with self._database.connect() as connection:
            wanted = table.c.id == reference.removeprefix(_REFERENCE)
            value = connection.execute(select(table.c.value).where(wanted)).scalar()
        if value is None:
            raise bad_request("The key of this external model is no longer stored: send it again.")
        return self._cipher().decrypt(value.encode()).decode()

    def forget(self, endpoint: str, kept: Iterable[Mapping[str, Any]] = ()) -> None:
        """Remove an endpoint's secrets but those that these configs refer to."""
        used = {str(value).removeprefix(_REFERENCE) for config in kept for _, value in _all(config)}
        with self._database.begin() as connection:
            connection.execute(delete(table).where(table.c.endpoint == endpoint, table.c.id.not_in(used)))


def _all(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [pair for entity in config.get("served_entities", ()) for pair in flat(entity)]


class Entities:
    """Makes entities.

    Parameters
    ----------
    home: the state folder, for the models' logs.
    registry, vault: where models and secrets are found.
    upstream_hosts: hosts in private networks that external models may be at.
    patience: seconds an external model may take to its first byte, and between two.
    idle: seconds without a call after which an entity with `scale_to_zero_enabled` gives its memory back.
    loads: models that are loaded at the same time.
    memory: bytes each process of a model may hold, where the entity does not say (`memory_limit_mb`); None: no limit.
    environments: whether a model gets an environment of its own where the server's packages do not satisfy its requirements.
    """

    def __init__(
        self,
        home: Path,
        registry: Registry,
        vault: Vault,
        *,
        upstream_hosts: Collection[str] = (),
        patience: float = 60,
        idle: float = 1800,
        loads: int = 2,
        memory: int | None = None,
        environments: bool = True,
    ) -> None:
        self.registry, self.vault = registry, vault
        self._logs = home / "logs"
        self._hosts, self._patience, self._idle = upstream_hosts, patience, idle
        self._loads = asyncio.Semaphore(loads)
        self._memory = memory
        self._environments = Environments(home / "environments", build=environments)
        self._forks = ForkServer(self._logs / ".forks.log")

    async def check(self, spec: Mapping[str, Any]) -> tuple[str, ModelVersion | None]:
        """The task of an entity and its model. Raises `CallError` where there is no such model, or it may not be reached."""
        if external := spec.get("external_model"):
            await asyncio.to_thread(check_upstream, external, self._hosts)
            return external["task"], None
        version = await asyncio.to_thread(self.registry.find, spec["entity_name"], spec["entity_version"])
        return version.task if version.task in TASKS else "predict", version

    async def make(self, endpoint: str, spec: Mapping[str, Any]) -> Entity:
        """An entity that is not yet started. Raises `CallError`."""
        task, version = await self.check(spec)
        if version is None:
            return External(
                await asyncio.to_thread(self._upstream, endpoint, spec["name"], spec["external_model"]), self._patience
            )
        environment = await asyncio.to_thread(self._environment, spec)
        limit = int(spec["memory_limit_mb"]) << 20 if spec.get("memory_limit_mb") else self._memory
        weights = await asyncio.to_thread(weights_of, version.path) if task == "llm/v1/chat" else None
        if weights is not None:
            model = LocalModel(
                weights,
                self._logs / endpoint / f"{spec['name']}.log",
                environment=environment,
                idle_timeout=self._idle if spec.get("scale_to_zero_enabled") else None,
                loads=self._loads,
                memory_limit=limit,
            )
            model.version = version.version
            return model

        secrets = [environment[key] for key, value in (spec.get("environment_vars") or {}).items() if is_reference(value)]
        count = SIZES[spec.get("workload_size", "Small")]
        if count > 1 and "OMP_NUM_THREADS" not in os.environ:  # they share the machine
            environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)), **environment}

        def process(number: int) -> ModelProcess:
            return ModelProcess(
                version.path,
                self._logs / endpoint / f"{spec['name']}{f'-{number}' if number else ''}.log",
                environment=environment,
                secrets=secrets,
                idle_timeout=self._idle if spec.get("scale_to_zero_enabled") else None,
                loads=self._loads,
                memory_limit=limit,
                interpreter=partial(self._environments.python, version.path),
                forks=self._forks,
            )

        processes = [process(number) for number in range(count)]
        return _Model(processes[0] if len(processes) == 1 else Replicas(processes), version, task)

    async def close(self) -> None:
        """End what starts models, once none of them runs."""
        await self._forks.close()

    def forget(self, endpoint: str) -> None:
        """Remove what an endpoint that is gone leaves behind. Blocking."""
        self.vault.forget(endpoint)
        shutil.rmtree(self._logs / endpoint, ignore_errors=True)

    def secret(self, reference: str) -> str:
        """The secret that a configuration refers to: the one place where references are resolved. Blocking."""
        return self.vault.read(reference)

    def _environment(self, spec: Mapping[str, Any]) -> dict[str, str]:
        """The variables of a model's process, secrets in the place of the references to them."""
        return {key: self.vault.scopes.resolved(value) for key, value in (spec.get("environment_vars") or {}).items()}

    def _upstream(self, endpoint: str, entity: str, model: Mapping[str, Any]) -> Upstream:
        reach = reach_of(model, self._hosts)
        field, reference = key_of(model) or (NO_KEY, "")
        key_from = f"the secret {reference}" if is_reference(reference) else f"its {field}"
        return upstream_of(model, self.secret, key_from=key_from, entity=f"entity {entity} of endpoint {endpoint}", reach=reach)


class _Model(Entrusted[pyfunc.Served]):
    """A registered model in its own process."""

    def __init__(self, process: pyfunc.Served, version: ModelVersion, task: str) -> None:
        super().__init__(process)
        self.version = version.version
        self.engine = pyfunc.engine(process, task)


class External:
    """A model elsewhere."""

    version, memory = None, 0

    def __init__(self, upstream: Upstream, patience: float) -> None:
        self._chat = ExternalChat(upstream, timeouts=Timeouts(first_byte=patience, between=patience))
        self._open = 0

    @property
    def state(self) -> tuple[str, str]:
        return "READY", ""

    async def engine(self, call: Call) -> AsyncIterator[Event]:
        self._open += 1
        try:
            async for event in self._chat.run(call):
                yield event
        finally:
            self._open -= 1

    async def start(self) -> None:
        pass

    async def stop(self, drain: float = 20) -> None:
        for _ in range(int(drain / 0.02)):
            if not self._open:
                break
            await asyncio.sleep(0.02)
        await self._chat.aclose()

    def logs(self) -> str:
        return "This entity is an external model; its logs are where it runs.\n"

    def build_logs(self) -> str:
        return "An external model is not built here.\n"


class Failed:
    """An entity that cannot run, in the place of one that should."""

    version, memory = None, 0

    def __init__(self, message: str) -> None:
        self._message = message

    @property
    def state(self) -> tuple[str, str]:
        return "FAILED", self._message

    async def engine(self, call: Call) -> AsyncIterator[Event]:
        raise unavailable(f"The served entity is not available: {self._message}")
        yield Event("result", {})  # makes this an async generator

    async def start(self) -> None:
        pass

    async def stop(self, drain: float = 20) -> None:
        pass

    def logs(self) -> str:
        return ""

    def build_logs(self) -> str:
        return self._message + "\n"
