"""Live experiments on endpoints: they deal the traffic, are looked at every few seconds, and end by promotion or rollback.

The arms are served entities of one endpoint. What is known of them says `governance.experiments`; here the endpoint's traffic
config is changed, the audit log written, and a guardrail that broke answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Engine as Database

from governance.call import Caller, CallError, bad_request, not_found
from governance.experiments import Arm, Spec, allocation, report
from governance.exposures import OF_ROWS, Event, Exposures
from governance.frames import iso
from governance.journal import Journal
from serving.declared import Dealt
from serving.experiments.store import Store
from serving.lifecycle import Lifecycle
from serving.record import Record

log = logging.getLogger("smalti")

EVERY = 10.0
"""Seconds between looks."""
_OVERLAP = 60_000  # milliseconds before the last look from which on events are read again; each counts once
_POINTS = 200  # of the history that is kept
_MIN_MOVE = 5  # percentage points by which track-and-stop moves shares, at least

Alias = Callable[[Caller, str, str, str], Awaitable[None]]
"""`alias(who, model, alias, version)` sets an alias of a registered model; raises `CallError`."""


class Experiments:
    """The experiments of this server.

    Parameters
    ----------
    database: the state database.
    journal: whose rows are read; it is brought up to date before each look.
    lifecycle: changes the traffic.
    alias: sets a registered model's alias; None where there is no registry.
    declared: experiments of the settings, begun once when their endpoint serves.
    dealt: the traffic of the endpoints that the settings declare, by name.
    told: `told(since_ms)` gives the events (feedback, assessments) kept elsewhere since then; blocking.
    """

    def __init__(
        self,
        database: Database,
        journal: Journal,
        lifecycle: Lifecycle,
        *,
        alias: Alias | None = None,
        told: Callable[[int], Iterable[Event]] = lambda since: (),
        declared: Sequence[Spec] = (),
        dealt: Mapping[str, Dealt] | None = None,
    ) -> None:
        self._database, self._journal, self._lifecycle = database, journal, lifecycle
        self._kept = Store(database)
        self._alias, self._told, self._declared = alias, told, list(declared)
        self._dealt = dealt if dealt is not None else {}
        self._seen: dict[str, Exposures] = {}
        self._asked: dict[str, int] = {}
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    # --- for people ---

    async def create(self, spec: Spec, by: str) -> dict[str, Any]:
        """Begin an experiment: from now on its endpoint's calls are dealt to its arms. Raises `CallError`."""
        async with self._lock:
            if await asyncio.to_thread(self._kept.row, spec.name) is not None:
                raise _conflict(f"There is an experiment {spec.name!r} already; give this one another name.")
            for row in await asyncio.to_thread(self._kept.rows, spec.endpoint):
                if row["state"] in ("RUNNING", "DECIDED"):
                    raise _conflict(
                        f"Endpoint {spec.endpoint!r} has the experiment {row['name']!r}: promote it or roll it back first."
                    )
            record = self._serves(spec.endpoint)
            if record.config is None or record.updating:
                raise _conflict(f"Endpoint {spec.endpoint!r} is being updated; begin the experiment when it is ready.")
            before = record.config["traffic_config"]
            spec = _complete(spec, record.config)
            await asyncio.to_thread(self._kept.insert, spec, before, _traffic(spec), by)
            try:
                await self._deal(spec.endpoint, _traffic(spec))
            except BaseException as error:
                await asyncio.to_thread(self._kept.end, spec.name, "STOPPED", f"it could not begin: {error}", by, None)
                raise
        return await self.get(spec.name)

    async def list(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        """Experiments, the newest first, as they were last looked at."""
        return [_object(row) for row in await asyncio.to_thread(self._kept.rows, endpoint)]

    async def get(self, name: str) -> dict[str, Any]:
        """One experiment; a running one is looked at now. Raises `CallError` (404)."""
        row = await self._known(name)
        if row["state"] == "RUNNING":
            async with self._lock:
                await self._look(row["name"])
            row = await self._known(name)
        return _object(row)

    async def endpoint_of(self, name: str) -> str:
        """Raises `CallError` (404)."""
        return (await self._known(name))["endpoint"]

    async def promote(self, name: str, who: Caller, winner: str | None = None) -> dict[str, Any]:
        """Give an arm all the traffic and set its model's alias.

        `winner`: default the arm that is shown to be the best; 409 where none is. Raises `CallError`.
        """
        async with self._lock:
            row = await self._known(name)
            spec = Spec.parse(json.loads(row["spec"]))
            _check(row, ("RUNNING", "DECIDED"), "promoted")
            if row["state"] == "RUNNING":
                await self._look(name)
                row = await self._known(name)
                _check(row, ("RUNNING", "DECIDED"), "promoted")
            chosen = winner or row["winner"] or json.loads(row["report"] or "{}").get("verdict", {}).get("winner")
            if chosen is None:
                verdict = json.loads(row["report"] or "{}").get("verdict", {}).get("text", "")
                raise _conflict(f"No arm is shown to be the best, so say which: 'served_entity_name'. {verdict}")
            if chosen not in spec.names:
                raise bad_request(f"{chosen!r} is none of the arms {', '.join(spec.names)}.", "served_entity_name")
            noted = await self._set_alias(spec, chosen, who)
            traffic = {**_plain(json.loads(row["before"])), "routes": _all_to(chosen)}
            await self._deal(spec.endpoint, traffic, admin=who.admin)
            if spec.endpoint in self._dealt:
                noted += "; until the next start: write it into the settings file, which declares the endpoint"
            reason = f"{who.name} promoted {chosen}{noted}"
            await asyncio.to_thread(self._kept.end, name, "PROMOTED", reason, who.name, chosen, traffic)
        return _object(await self._known(name))

    async def rollback(self, name: str, by: str, reason: str | None = None) -> dict[str, Any]:
        """Give the traffic back to whom it went before, also after a promotion. Raises `CallError`."""
        async with self._lock:
            await self._rollback(name, by, reason or f"{by} rolled it back")
        return _object(await self._known(name))

    async def event(self, name: str, request_id: str, metric: str, value: float, who: Caller, *, manager: bool) -> None:
        """Keep a number that tells of an answer of the experiment's endpoint, for its unit. Raises `CallError`."""
        if metric in OF_ROWS:
            raise bad_request(f"{metric} is told by the journal itself; name the event otherwise.", "metric")
        row = await self._known(name)
        await asyncio.to_thread(self._journal.ingest)
        await asyncio.to_thread(self._kept.event, row, request_id, metric, value, None if manager else who)

    # --- looking ---

    async def start(self) -> None:
        """Look at what runs, every few seconds. Declared endpoints, which came up as the file says, are dealt as before."""
        for row in await asyncio.to_thread(self._kept.rows, None):
            if row["endpoint"] in self._dealt and row["state"] in ("RUNNING", "DECIDED"):
                spec = Spec.parse(json.loads(row["spec"]))
                won = {"routes": _all_to(row["winner"])} if row["winner"] else {}
                try:
                    self._dealt[row["endpoint"]].deal({**_traffic(spec), **won})
                except CallError as error:
                    log.warning("experiment %s cannot go on: %s", row["name"], error.message)
        self._task = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        troubled, waited = "", 0.0
        while True:
            pause = min(1.0, EVERY) if self._declared else EVERY  # what is declared begins as soon as its endpoint serves
            await asyncio.sleep(pause)
            waited += pause
            try:
                for spec in list(self._declared):
                    await self._begin_declared(spec)
                if waited < EVERY:
                    continue
                waited = 0.0
                running = [row["name"] for row in await asyncio.to_thread(self._kept.rows, None) if row["state"] == "RUNNING"]
                for name in running:
                    async with self._lock:
                        await self._look(name)
                for name in self._seen.keys() - set(running):
                    self._seen.pop(name, None)
                troubled = ""
            except Exception as error:  # the next look may do better, and calls are answered meanwhile
                if troubled != str(error):
                    log.warning("experiments could not be looked at: %s", error, exc_info=not isinstance(error, CallError))
                troubled = str(error)

    async def _begin_declared(self, spec: Spec) -> None:
        if await asyncio.to_thread(self._kept.row, spec.name) is None:
            try:
                await self.create(spec, "smalti.yaml")
            except CallError as error:
                if error.status == 404 or "being updated" in error.message:
                    return  # its endpoint may come yet
                log.warning("experiment %s of smalti.yaml is not begun: %s", spec.name, error.message)
        self._declared.remove(spec)

    async def _look(self, name: str) -> None:
        """Read what is new and act on it. Under the lock."""
        row = await self._known(name)
        if row["state"] != "RUNNING":
            return
        spec = Spec.parse(json.loads(row["spec"]))
        record = self._dealt.get(spec.endpoint) or self._lifecycle.find(spec.endpoint)
        dealt = ((record.config if record else None) or {}).get("traffic_config", {})
        if dealt.get("experiment") != name or _traffic(spec)["routes"] != _plain(dealt)["routes"]:
            reason = "the endpoint was deleted" if record is None else "the endpoint's traffic was changed by someone else"
            await asyncio.to_thread(self._kept.end, name, "STOPPED", reason, f"experiment {name}", None)
            return
        if (now := iso(time.time_ns())) < row["started"]:  # the clock was ahead then, and is put right: it began by now
            row["started"] = now
            await asyncio.to_thread(self._kept.began, name, now)
            self._seen.pop(name, None)
        seen = self._seen.get(name)
        if seen is None:
            seen = Exposures(self._database, name, spec.endpoint, spec.names, row["started"], paired=spec.mode == "shadow")
            self._seen[name] = seen
        found = await asyncio.to_thread(self._measure, spec, seen, row["report"])
        await asyncio.to_thread(self._kept.store, name, found)
        if found["guardrail"]:
            await self._rollback(name, f"experiment {name}", found["guardrail"]["text"])
        elif spec.mode == "track-and-stop":
            await self._track(spec, seen, found)

    def _measure(self, spec: Spec, seen: Exposures, last: str | None) -> dict[str, Any]:
        self._journal.ingest()
        now = time.time_ns() // 1_000_000
        asked = min(self._asked.get(spec.name, 0), now)  # the clock may have been put back since
        self._asked[spec.name] = now
        seen.read(self._told(asked - _OVERLAP))
        found = report(spec, seen)
        history = (json.loads(last) if last else {}).get("history", [])
        units = sum(arm["units"] for arm in found["arms"])
        if not history or history[-1]["units"] != units:
            others = {metric["name"]: metric["differences"] for metric in found["metrics"][1:]}
            deciding = found["metrics"][0]["differences"]
            history.append({"time": iso(time.time_ns()), "units": units, "differences": deciding, "others": others})
        found["history"] = history if len(history) <= _POINTS else [*history[:-1:2], history[-1]]
        return found

    async def _track(self, spec: Spec, seen: Exposures, found: Mapping[str, Any]) -> None:
        """Track-and-stop: shares go where they decide soonest; once decided, all traffic goes to the winner."""
        actor = f"experiment {spec.name}"
        if winner := found["verdict"]["winner"]:
            traffic = {**_traffic(spec), "routes": _all_to(winner)}
            await self._deal(spec.endpoint, traffic)
            await asyncio.to_thread(self._kept.end, spec.name, "DECIDED", found["verdict"]["text"], actor, winner, traffic)
            return
        shares = await asyncio.to_thread(allocation, spec, seen)
        now = [arm.traffic_percentage for arm in spec.arms]
        if max(abs(a - b) for a, b in zip(shares, now, strict=True)) >= _MIN_MOVE:
            arms = [
                Arm(served_entity_name=name, traffic_percentage=share) for name, share in zip(spec.names, shares, strict=True)
            ]
            moved = spec.model_copy(update={"arms": arms})
            await self._deal(spec.endpoint, _traffic(moved))
            await asyncio.to_thread(self._kept.store, spec.name, None, moved)

    async def _rollback(self, name: str, by: str, reason: str) -> None:
        row = await self._known(name)
        _check(row, ("RUNNING", "DECIDED", "PROMOTED"), "rolled back")
        before, spec = json.loads(row["before"]), Spec.parse(json.loads(row["spec"]))
        if row["state"] == "PROMOTED" and spec.alias and self._model(spec.endpoint, row["winner"]):
            reason += f"; alias {spec.alias} stays as the promotion set it"
        await self._deal(row["endpoint"], before)
        await asyncio.to_thread(self._kept.end, name, "ROLLED_BACK", reason, by, None, before)

    async def _set_alias(self, spec: Spec, chosen: str, who: Caller) -> str:
        if spec.alias is None:
            return ""
        entity = self._model(spec.endpoint, chosen)
        if entity is None:
            return f"; alias {spec.alias} is not set, for {chosen} is no registered model"
        if self._alias is None:
            raise _conflict("There is no model registry here to set the alias in; start with SMALTI_MLFLOW=true.")
        record = self._serves(spec.endpoint)
        assert isinstance(record, Record)  # declared endpoints have external models only
        model, version = entity["entity_name"], str(record.entities[chosen].version or entity["entity_version"])
        await self._alias(who, model, spec.alias, version)
        return f" and set {model}@{spec.alias} to version {version}"

    def _model(self, endpoint: str, arm: str) -> Mapping[str, Any] | None:
        """The served entity of an arm, where it is a registered model."""
        entities = (self._serves(endpoint).config or {})["served_entities"]
        return next((each for each in entities if each["name"] == arm and "entity_name" in each), None)

    async def _known(self, name: str) -> dict[str, Any]:
        row = await asyncio.to_thread(self._kept.row, name)
        if row is None:
            raise not_found(f"There is no experiment {name!r}; list them with `smalti experiments list`.")
        return row

    def _serves(self, endpoint: str) -> Dealt | Record:
        """Raises `CallError` (404, and 409 for an endpoint whose traffic cannot be split)."""
        return self._dealt.get(endpoint) or self._lifecycle.get(endpoint)

    async def _deal(self, endpoint: str, traffic: Mapping[str, Any], *, admin: bool = False) -> None:
        if endpoint in self._dealt:
            self._dealt[endpoint].deal(traffic)
        else:
            await self._lifecycle.update(endpoint, {"traffic_config": traffic}, admin=admin)


def _complete(spec: Spec, config: Mapping[str, Any]) -> Spec:
    """The experiment with its arms and control filled in from the endpoint. Raises `CallError`."""
    entities = [entity["name"] for entity in config["served_entities"]]
    if not spec.arms:
        routes = {route["served_entity_name"]: route["traffic_percentage"] for route in config["traffic_config"]["routes"]}
        if spec.mode == "shadow":
            control = spec.control or max(routes, key=routes.__getitem__)
            arms = [{"served_entity_name": name, "traffic_percentage": 100} for name in entities]
            spec = Spec.parse({**spec.model_dump(), "control": control, "arms": arms})
        else:
            arms = [{"served_entity_name": name, "traffic_percentage": share} for name, share in routes.items() if share]
            spec = Spec.parse({**spec.model_dump(), "arms": arms})
    for name in spec.names:
        if name not in entities:
            raise bad_request(f"Endpoint {spec.endpoint!r} serves no {name!r}; it serves {', '.join(entities)}.", "arms")
    return spec if spec.control else spec.model_copy(update={"control": spec.names[0]})


def _traffic(spec: Spec) -> dict[str, Any]:
    """The traffic config that deals calls to the arms; the experiment's own salt deals units anew."""
    made: dict[str, Any] = {"sticky": spec.sticky, "salt": f"{spec.endpoint}:{spec.name}", "experiment": spec.name}
    if spec.mode != "shadow":
        return made | {"routes": [_route(arm.served_entity_name, arm.traffic_percentage) for arm in spec.arms]}
    copies = [arm for arm in spec.arms if arm.served_entity_name != spec.control]
    shadow = [{"served_entity_name": arm.served_entity_name, "traffic_percentage": arm.traffic_percentage} for arm in copies]
    return made | {"routes": _all_to(spec.control), "shadow": shadow}


def _route(name: str, share: int) -> dict[str, Any]:
    return {"served_model_name": name, "served_entity_name": name, "traffic_percentage": share}


def _all_to(name: str) -> list[dict[str, Any]]:
    return [_route(name, 100)]


def _plain(traffic: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in traffic.items() if key not in ("experiment", "shadow")}


def _check(row: Mapping[str, Any], states: Sequence[str], wanted: str) -> None:
    if row["state"] not in states:
        raise _conflict(f"Experiment {row['name']!r} is {row['state']}, so it cannot be {wanted}. {row['reason'] or ''}".rstrip())


def _conflict(message: str) -> CallError:
    return CallError(message, status=409, code="RESOURCE_CONFLICT")


def _object(row: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment as the API gives it."""
    spec, found = json.loads(row["spec"]), json.loads(row["report"] or "{}")
    pending = {"decision": "undecided", "winner": None, "text": "It has not been looked at yet."}
    verdict = found.pop("verdict", pending)
    if row["state"] != "RUNNING":
        verdict = {**verdict, "winner": row["winner"], "text": f"{row['state']}: {row['reason']}."}
    return {
        **spec,
        "state": row["state"],
        "creator": row["creator"],
        "started": row["started"],
        "ended": row["ended"],
        "reason": row["reason"],
        "before": json.loads(row["before"]),
        "verdict": verdict,
        "metrics_wanted": spec["metrics"],
        **({"metrics": [], "history": [], "guardrail": None, "sample_ratio": None, "crossed_calls": 0} | found),
    }
