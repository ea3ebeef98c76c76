"""The life of endpoints of models: made through the API or declared, updated without a failed call, kept over restarts, deleted.

An endpoint serves its `config`. A change is `pending` while its new entities are started beside the old ones; only when all are
ready do they take the old ones' place. A change that fails is told (`UPDATE_FAILED`), and what served serves on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from sqlalchemy import Engine as Database
from sqlalchemy import delete, insert, select, update

from governance import audit
from governance.call import CallError, bad_request
from governance.tables import audit_log
from serving.config import NAME, hide, parse, readable, vouch
from serving.endpoint import Endpoint, Endpoints, EndpointTask
from serving.engines.supervised import LoadFailed
from serving.entities import Entities, Entity, External, Failed
from serving.record import Record
from serving.tables import endpoints as table
from serving.traffic import Expose, Mirror, Traffic, arms

log = logging.getLogger("smalti")

DETAILS = ("description", "tags", "email_notifications", "route_optimized", "rate_limits", "telemetry_config", "budget_policy_id")


REGISTERED_EVERY = 2.0
"""Seconds between two looks for a model that is declared, but not registered yet."""


class Lifecycle:
    """The endpoints of models that were made through the API, and those of registered models that the settings declare.

    Parameters
    ----------
    database: the state database; its tables are made.
    endpoints: the registry that serves; what the settings declare is in it already, and wins.
    entities: makes what runs.
    url: where clients reach this server.
    fallback: whether an endpoint's entities may stand in for one another now.
    mirror: starts copies of calls for shadows.
    expose: notes in a call's row which arm of an experiment it was dealt.
    """

    def __init__(
        self,
        database: Database,
        endpoints: Endpoints,
        entities: Entities,
        *,
        url: str,
        fallback: Callable[[str], bool] = lambda name: False,
        mirror: Mirror | None = None,
        expose: Expose | None = None,
    ) -> None:
        audit_log.create(database, checkfirst=True)
        self._database, self._endpoints, self._entities = database, endpoints, entities
        self._fallback, self._mirror, self._expose = fallback, mirror, expose
        self._url = url
        self._records: dict[str, Record] = {}
        self._lock = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()

    def find(self, name: str) -> Record | None:
        return self._records.get(name)

    def get(self, name: str) -> Record:
        """The record of an endpoint. Raises `CallError`: 404 where there is none, 409 where the settings declare it."""
        record = self._records.get(name)
        if record and not record.declared:
            return record
        if name in self._endpoints:
            raise CallError(
                f"Endpoint {name!r} is declared in the server's settings, which win: change it there.",
                status=409,
                code="RESOURCE_CONFLICT",
            )
        raise self._endpoints.missing(name)

    async def restore(self) -> None:
        """Serve what is declared, and again what was served when the server was last stopped. Models load in the background."""
        for record in self._records.values():
            record.work = asyncio.create_task(self._come(record))
        for row in await asyncio.to_thread(self._stored):
            if row["name"] in self._endpoints:
                log.warning("endpoint %s is declared in the settings, which win over the one made through the API", row["name"])
                continue
            record = Record(
                row["name"], row["creator"], row["created"], row["updated"], config_version=row["config_version"],
                config=json.loads(row["config"]) if row["config"] else None,
                pending=json.loads(row["pending"]) if row["pending"] else None,
                failure=row["failure"], details=json.loads(row["details"]),
            )  # fmt: skip
            self._records[record.name] = record
            for spec in (record.config or {}).get("served_entities", ()):
                try:
                    record.task = await self._task(record.config or {})
                    record.entities[spec["name"]] = await self._entities.make(record.name, spec)
                except CallError as error:
                    log.warning("endpoint %s: entity %s is not available: %s", record.name, spec["name"], error.message)
                    record.entities[spec["name"]] = Failed(error.message, passing=error.status == 503)
            self._register(record)
            record.work = asyncio.create_task(self._resume(record))

    def declare(self, name: str, config: Mapping[str, Any], description: str = "") -> None:
        """Register an endpoint of registered models; `restore` starts it. Raises `CallError` where the config is wrong."""
        now = time.time_ns() // 1_000_000
        record = Record(name, "smalti", now, now, pending=parse(config), details={"description": description}, declared=True)
        self._records[name] = record
        self._register(record)

    async def create(self, body: Mapping[str, Any], creator: str, *, admin: bool = False) -> Endpoint:
        """A new endpoint; its models are loaded in the background. What an `admin` declares may reach further (`config.vouch`).

        Raises `CallError`.
        """
        name = body.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise bad_request("Field 'name' must be 1 to 63 letters, digits, '-', '_' and '.', a letter or digit first.", "name")
        config = vouch(parse(body.get("config")), None, admin=admin)
        async with self._lock:
            if name in self._endpoints:
                raise CallError(f"There is an endpoint {name!r} already.", status=409, code="RESOURCE_ALREADY_EXISTS")
            task = await self._task(config)
            now = time.time_ns() // 1_000_000
            details = {key: body[key] for key in DETAILS if body.get(key) is not None}
            record = Record(name, creator, now, now, task, details=details)
            record.pending = await self._hidden(name, config)
            await asyncio.to_thread(self._insert, record)
            self._records[name] = record
            self._register(record)
        record.work = asyncio.create_task(self._roll(record))
        return self._endpoints.get(name)

    async def update(self, name: str, body: Mapping[str, Any], *, admin: bool = False, by: str | None = None) -> Endpoint:
        """Bring an endpoint to another config, in the background. Raises `CallError`.

        `by`: who asks, for the audit log; None where an experiment does, whose own line says so.
        """
        record = self.get(name)
        before = _told(record)
        config = vouch(parse(body, current=record.config), record.config, admin=admin)
        async with self._lock:
            if record.updating:
                raise CallError(
                    f"Endpoint {name!r} is being updated; wait until it is, then send this again.",
                    status=409,
                    code="RESOURCE_CONFLICT",
                )
            serving = record.config or {}
            if config["served_entities"] == serving.get("served_entities"):  # only shares change: in force with the answer
                record.config, record.pending, record.failure = {**serving, **config}, None, None
                record.config_version, record.updated = record.config_version + 1, time.time_ns() // 1_000_000
                self._register(record)
                await self._save(record, by, before)
                return self._endpoints.get(name)
            await self._task(config)
            record.pending, record.failure = await self._hidden(name, config), None
            await self._save(record, by, before)
        record.work = asyncio.create_task(self._roll(record))
        return self._endpoints.get(name)

    async def change(self, name: str, by: str, **details: Any) -> Record:
        """Store new details (tags, notifications, telemetry), as `by` asks; raises `CallError`."""
        record = self.get(name)
        before = _told(record)
        record.details = {**record.details, **details}
        await self._save(record, by, before)
        return record

    async def delete(self, name: str, *, by: str | None = None) -> None:
        """Take an endpoint out at once; running answers may end. Raises `CallError`."""
        async with self._lock:
            record = self.get(name)
            del self._records[name]
            self._endpoints.remove(name)
            await asyncio.to_thread(self._drop, record, by)
        if record.work:
            record.work.cancel()
            await asyncio.wait([record.work])
        self._retire([*record.entities.values(), *record.coming.values()], name)

    async def close(self) -> None:
        """Stop everything; for the end of the server."""
        work = [record.work for record in self._records.values() if record.work and not record.work.done()]
        for task in work:
            task.cancel()
        if work or self._ending:
            await asyncio.wait([*work, *self._ending])
        running = [e for record in self._records.values() for e in {*record.entities.values(), *record.coming.values()}]
        await asyncio.gather(*(entity.stop(0) for entity in running), return_exceptions=True)
        await self._entities.close()

    # --- within ---

    async def _task(self, config: Mapping[str, Any]) -> EndpointTask:
        tasks: dict[str, str] = {}
        for spec in config["served_entities"]:
            tasks[spec["name"]] = (await self._entities.check(spec))[0]
        if len(set(tasks.values())) > 1:
            raise bad_request(f"The served entities of one endpoint must have one task; these have {tasks}.", "served_entities")
        return next(iter(tasks.values()))  # type: ignore[return-value]

    async def _hidden(self, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        kept: dict[str, str] = {}

        def keep(value: str) -> str:
            kept[reference := self._entities.vault.reference()] = value
            return reference

        hidden = hide(config, keep)
        await asyncio.to_thread(self._entities.vault.keep, name, kept)
        return hidden

    async def _resume(self, record: Record) -> None:
        """Start what serves, once the registry answers; then what is pending."""
        while missing := [name for name, each in record.entities.items() if isinstance(each, Failed) and each.passing]:
            await asyncio.sleep(REGISTERED_EVERY)
            config = record.config or {}
            for spec in config["served_entities"]:
                if spec["name"] not in missing:
                    continue
                try:
                    record.task = await self._task(config)
                    made = await self._entities.make(record.name, spec)
                except CallError as error:
                    made = Failed(error.message, passing=error.status == 503)
                serves = (record.config or {}).get("served_entities")
                if self._records.get(record.name) is not record or serves != config["served_entities"]:
                    return  # it was deleted, or brought to another config, meanwhile
                record.entities[spec["name"]] = made
            self._register(record)
        results = await asyncio.gather(*(entity.start() for entity in record.entities.values()), return_exceptions=True)
        for error in results:
            if isinstance(error, Exception):
                log.warning("endpoint %s: %s", record.name, error)
        if record.updating:
            await self._roll(record)

    async def _come(self, record: Record) -> None:
        """Start what is declared, as soon as its models are registered."""
        while True:
            try:
                await self._task(record.pending or {})
            except CallError as error:
                if record.failure != error.message:
                    log.warning("endpoint %s: %s", record.name, error.message)
                record.failure = error.message
                await asyncio.sleep(REGISTERED_EVERY)
                continue
            record.failure = None
            await self._roll(record)
            if record.failure:
                log.warning("endpoint %s: %s", record.name, record.failure)
            return

    async def _roll(self, record: Record) -> None:
        """Start what is pending; then let it take the place of what serves, or tell why it cannot."""
        pending = record.pending or {}
        same = {spec["name"]: spec for spec in (record.config or {}).get("served_entities", ())}
        fresh: dict[str, Entity] = {}
        try:
            for spec in pending["served_entities"]:
                running = record.entities.get(spec["name"])
                if running is not None and same.get(spec["name"]) == spec and running.state[0] != "FAILED":
                    record.coming[spec["name"]] = running
                else:
                    fresh[spec["name"]] = record.coming[spec["name"]] = await self._entities.make(record.name, spec)
            await _all_started(fresh)
            task = await self._task(pending)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            if not isinstance(error, CallError | LoadFailed):
                log.exception("endpoint %s cannot be updated", record.name)
            record.failure = error.message if isinstance(error, CallError) else str(error)
            await asyncio.gather(*(entity.stop(0) for entity in fresh.values()), return_exceptions=True)
            await self._save(record)
            return
        retired = [entity for entity in record.entities.values() if entity not in record.coming.values()]
        record.config, record.pending, record.entities, record.coming = pending, None, record.coming, {}
        record.config_version, record.task = record.config_version + 1, task
        record.updated = time.time_ns() // 1_000_000
        self._register(record)
        await self._save(record)
        if not record.declared:
            await asyncio.to_thread(self._entities.vault.forget, record.name, [pending])
        self._retire(retired)

    def _retire(self, entities: Collection[Entity], gone: str | None = None) -> None:
        async def end() -> None:
            await asyncio.gather(*(entity.stop() for entity in entities), return_exceptions=True)
            if gone and gone not in self._endpoints:
                await asyncio.to_thread(self._entities.forget, gone)

        task = asyncio.create_task(end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _register(self, record: Record) -> None:
        if record.config:
            named = [(spec["name"], record.entities[spec["name"]]) for spec in record.config["served_entities"]]
            record.arms = arms(
                Traffic.of(record.config, record.name),
                [(name, entity.engine, 3 if isinstance(entity, External) else 1) for name, entity in named],
                record.arms,
                fallback=lambda: self._fallback(record.name),
                mirror=self._mirror,
                expose=self._expose,
            )
        self._endpoints.register(
            Endpoint(
                record.name,
                record.task,
                record.answer,
                creator=record.creator,
                description=record.details.get("description") or "",
                created_ms=record.created,
                config_version=record.config_version,
                live=lambda: record.live(self._url),
                health=lambda: record.arms.health() if record.arms else {},
            )
        )

    async def _save(self, record: Record, by: str | None = None, before: Any = None) -> None:
        if record.declared:  # a row of this name is one that the API made before, and is kept as it was
            return
        await asyncio.to_thread(self._store, record, by, before)

    def _stored(self) -> list[Mapping[str, Any]]:
        with self._database.connect() as connection:
            return [dict(row) for row in connection.execute(select(table).order_by(table.c.created)).mappings()]

    def _insert(self, record: Record) -> None:
        with self._database.begin() as connection:
            # a name that the settings once declared may have been left behind by an endpoint of the API
            connection.execute(delete(table).where(table.c.name == record.name))
            key = {"name": record.name, "creator": record.creator, "created": record.created}
            connection.execute(insert(table).values(**key, **_columns(record)))
            audit.record(connection, record.creator, "endpoint.create", f"endpoint:{record.name}", after=_told(record))

    def _store(self, record: Record, by: str | None, before: Any) -> None:
        with self._database.begin() as connection:
            connection.execute(update(table).where(table.c.name == record.name).values(**_columns(record)))
            if by is not None:
                audit.record(connection, by, "endpoint.update", f"endpoint:{record.name}", before, _told(record))

    def _drop(self, record: Record, by: str | None) -> None:
        with self._database.begin() as connection:
            connection.execute(delete(table).where(table.c.name == record.name))
            audit.record(connection, by, "endpoint.remove", f"endpoint:{record.name}", _told(record))


def _told(record: Record) -> dict[str, Any]:
    """What of an endpoint stands in the audit log: its config as it is read back, that to come where there is one."""
    return {"config": readable(record.pending or record.config or {}), **record.details}


def _columns(record: Record) -> dict[str, Any]:
    return {
        "updated": record.updated,
        "config_version": record.config_version,
        "config": json.dumps(record.config) if record.config else None,
        "pending": json.dumps(record.pending) if record.pending else None,
        "failure": record.failure,
        "details": json.dumps(record.details),
    }


async def _all_started(entities: Mapping[str, Entity]) -> None:
    """Start several at once; raises what the first of them failed with, once all have ended."""
    tasks = [asyncio.create_task(entity.start()) for entity in entities.values()]
    try:
        results = await asyncio.gather(*tasks, return_exceptions=True)
    except asyncio.CancelledError:
        with contextlib.suppress(BaseException):
            await asyncio.gather(*tasks, return_exceptions=True)
        raise
    for name, error in zip(entities, results, strict=True):
        if isinstance(error, LoadFailed):
            raise LoadFailed(f"{name}: {error}") from None
        if isinstance(error, BaseException):
            raise error
