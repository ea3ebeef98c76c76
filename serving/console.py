"""What the console reads and changes, over the platform's rooms; each with the caller's grants."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson

from governance import audit, hourly
from governance.call import Caller, bad_request, forbidden, not_found
from governance.policies import AiGatewayConfig
from governance.tables import inference_table
from serving.feedback import source_of
from serving.securables import exists
from serving.thread_files import PREFIX

if TYPE_CHECKING:
    from serving.platform import Platform

Row = Mapping[str, Any]

LISTED = (
    "databricks_request_id", "request_time", "status_code", "execution_duration_ms", "requester", "endpoint_name", "task",
    "input_tokens", "output_tokens", "cost", "error", "parent_request_id",
)  # fmt: skip
"""Columns of a call in a list: no payloads."""

AUDITED = 200


class Console:
    """`serving.ui.services.ConsoleData` over a platform."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    @property
    def mlflow(self) -> bool:
        return self._platform.mlflow is not None

    # --- reading

    async def usage(self, who: Caller, since: str) -> Sequence[Row]:
        return await asyncio.to_thread(self._usage, who, since)

    def _usage(self, who: Caller, since: str) -> Sequence[Row]:
        self._platform.journal.ingest()
        requester = None if who.admin else who.name
        return hourly.read(self._platform.engine, since=since, requester=requester, by=("hour", "endpoint"))

    async def thumbs(self, who: Caller, since: str) -> Sequence[Row]:
        if self._platform.mlflow is None:
            return []
        begin = int(datetime.fromisoformat(f"{since}:00+00:00").timestamp() * 1000)
        name = None if who.admin else source_of(who)
        return await asyncio.to_thread(self._platform.traces.thumbs, begin, name)

    async def calls(self, who: Caller, query: Mapping[str, str], limit: int) -> Sequence[Row]:
        return await asyncio.to_thread(self._calls, who, query, limit)

    def _calls(self, who: Caller, query: Mapping[str, str], limit: int) -> Sequence[Row]:
        from sqlalchemy import or_, select

        self._platform.journal.ingest()
        table = inference_table.c
        where: list[Any] = self._visible(who)
        if since := query.get("since"):
            where.append(table.request_time >= since)
        if name := query.get("endpoint"):
            where.append(table.endpoint_name == name)
        if name := query.get("caller"):
            where.append(table.requester == name)
        if (status := query.get("status", "")).isdigit():
            lowest, highest = (int(status), int(status)) if len(status) > 1 else (int(status) * 100, int(status) * 100 + 99)
            where.append(table.status_code.between(lowest, highest))
        elif status:
            where.append(table.status_code.is_(None))
        if text := query.get("text"):
            # payloads are JSON, which writes some characters another way
            forms = {text, orjson.dumps(text).decode()[1:-1]}
            among = (table.request, table.response, table.error, table.databricks_request_id)
            where.append(or_(*(column.contains(form, autoescape=True) for column in among for form in forms)))
        statement = select(*(table[name] for name in LISTED)).where(*where)
        order = (table.request_time.desc(), table.databricks_request_id.desc())
        with self._platform.engine.connect() as connection:
            return [dict(row) for row in connection.execute(statement.order_by(*order).limit(limit)).mappings()]

    def _visible(self, who: Caller) -> list[Any]:
        """An administrator sees all calls, others their own and those of what they manage."""
        if who.admin:
            return []
        from sqlalchemy import and_

        platform, table = self._platform, inference_table.c
        managed = [
            each.name for each in platform.endpoints if platform.grants.allowed(who, f"endpoint:{each.name}", "CAN_MANAGE")
        ]
        return [and_(table.requester == who.name, table.requester_kind == who.kind) | table.endpoint_name.in_(managed)]

    async def call(self, who: Caller, request_id: str) -> Row | None:
        return await asyncio.to_thread(self._call, who, request_id)

    def _call(self, who: Caller, request_id: str) -> Row | None:
        from sqlalchemy import select

        self._platform.journal.ingest()
        table = inference_table.c
        with self._platform.engine.connect() as connection:
            one = select(inference_table).where(table.databricks_request_id == request_id, *self._visible(who))
            row = connection.execute(one).mappings().first()
            if row is None:
                return None
            # found by their time, which is indexed: an answer's own calls are made while it is
            begin = datetime.fromisoformat(row["request_time"])
            end = begin + timedelta(milliseconds=(row["execution_duration_ms"] or 3_600_000.0) + 1000)
            within = table.request_time.between(row["request_time"], end.isoformat())
            inner = select(*(table[name] for name in LISTED)).where(within, table.parent_request_id == request_id)
            found = [dict(each) for each in connection.execute(inner.order_by(table.request_time).limit(200)).mappings()]
        traces = None
        if self._platform.mlflow and row["trace_id"]:
            traces = self._platform.traces.url(request_id, row["trace_id"])
        verdicts = orjson.loads(row["guardrail_verdicts"] or "[]")
        return {**row, "guardrail_verdicts": verdicts, "inner": found, "traces": traces}

    async def endpoints(self, who: Caller) -> Sequence[Row]:
        platform, found = self._platform, []
        for each in platform.endpoints:
            if level := platform.grants.level(who, f"endpoint:{each.name}"):
                api = each.to_api(level, ai_gateway=platform.policy(each))
                found.append({**api, "changeable": platform.lifecycle.find(each.name) is not None})
        return found

    async def indexes(self, who: Caller) -> Sequence[Row]:
        platform, groups = self._platform, None if who.admin else who.groups
        found = await asyncio.to_thread(platform.indexes.list)
        mine = [each for each in found if platform.grants.allowed(who, f"index:{each.name}", "CAN_VIEW")]
        return [_index_row(await asyncio.to_thread(platform.indexes.told, each, groups)) for each in mine]

    # --- endpoints

    async def set_split(self, who: Caller, name: str, shares: Mapping[str, int]) -> None:
        platform = self._platform
        platform.grants.check(who, f"endpoint:{name}", "CAN_MANAGE")
        record = platform.lifecycle.get(name)
        config = record.config or {}
        known = {route["served_entity_name"] for route in (config.get("traffic_config") or {}).get("routes", ())}
        if set(shares) != known:
            raise bad_request(f"Endpoint {name!r} serves {', '.join(sorted(known))} now; open it again.", "traffic_config")
        routes = [{"served_model_name": entity, "traffic_percentage": share} for entity, share in shares.items()]
        # the entities stay as they are: what is kept of them holds secrets that no update takes back as text
        await platform.lifecycle.update(
            name, {"traffic_config": {**config["traffic_config"], "routes": routes}}, admin=who.admin, by=who.name
        )

    async def set_limits(self, who: Caller, name: str, limits: Sequence[Row]) -> None:
        platform = self._platform
        platform.grants.check(who, f"endpoint:{name}", "CAN_MANAGE")
        held = platform.policy(platform.endpoints.get(name)) or {}
        try:
            policy = AiGatewayConfig.parse({**held, "rate_limits": list(limits)})
            await asyncio.to_thread(platform.policies.set, name, policy, by=who.name)
        except ValueError as error:
            raise bad_request(f"{error}.", "rate_limits") from None

    # --- access; all of it takes an administrator

    async def access(self, who: Caller) -> tuple[Sequence[Row], Sequence[Row], Sequence[Row], Sequence[Row]]:
        _owner(who)
        platform = self._platform

        def read() -> Any:
            newest = reversed(platform.identity.list_keys())  # what was just made comes first, and what is no more last
            keys = [_key_row(each) for each in sorted(newest, key=lambda each: not each.live)]
            grants = [
                {"principal": g.principal, "level": g.level, "securable": g.securable, "via": g.via}
                for g in platform.grants.list()
                if not g.securable.startswith(f"index:{PREFIX}")  # what a person handed to a conversation is theirs
            ]
            budgets = platform.budgets.standing(platform.policies.list())
            return keys, grants, budgets, audit.entries(platform.engine, limit=AUDITED)

        return await asyncio.to_thread(read)

    async def create_key(self, who: Caller, name: str, kind: str, groups: Sequence[str], label: str) -> str:
        _owner(who)
        create: Any = self._platform.identity.create_key
        try:
            return (await asyncio.to_thread(create, name, kind=kind, groups=list(groups), label=label, by=who.name))[1]
        except ValueError as error:
            raise bad_request(str(error)) from None

    async def revoke_key(self, who: Caller, key_id: str) -> None:
        _owner(who)
        try:
            await asyncio.to_thread(self._platform.identity.revoke, key_id, by=who.name)
        except KeyError as error:
            raise not_found(error.args[0]) from None

    async def grant(self, who: Caller, principal: str, securable: str, level: str) -> None:
        _owner(who)
        if not await asyncio.to_thread(exists, self._platform, securable):
            raise not_found(f"There is no {securable!r} here; write endpoint:NAME or index:CATALOG.SCHEMA.NAME.")
        try:
            await asyncio.to_thread(self._platform.grants.grant, principal, securable, level, by=who)
        except ValueError as error:
            raise bad_request(str(error)) from None

    async def revoke_grant(self, who: Caller, principal: str, securable: str) -> None:
        _owner(who)
        await asyncio.to_thread(self._platform.grants.revoke, principal, securable, by=who.name)


def _owner(who: Caller) -> None:
    if not who.admin:
        raise forbidden("Keys, grants, budgets and the audit log are for administrators.")


def _index_row(info: Any) -> Row:
    return {
        "name": info.name,
        "source": info.path,
        "status": info.status,
        "documents": info.documents,
        "chunks": info.chunks,
        "encoder": info.encoder,
        "synced_at": info.synced_at,
        "error": info.error,
        "skipped": [{"source": item.source, "reason": item.reason} for item in info.skipped],
    }


def _key_row(key: Any) -> Row:
    return {
        "id": key.id,
        "name": key.name,
        "kind": key.kind,
        "groups": list(key.groups),
        "admin": key.admin,
        "label": key.label,
        "created_at": key.created,
        "expires_at": key.expires,
        "revoked": key.revoked is not None,
    }
