"""Experiments as the state database keeps them, with their events; changes of state stand in the audit log. All blocking."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, insert, select, update

from governance import audit
from governance.call import Caller, not_found
from governance.experiments import Spec
from governance.frames import iso
from governance.tables import experiment_events, inference_table
from governance.tables import experiments as table


class Store:
    """The table of experiments."""

    def __init__(self, database: Engine) -> None:
        self._database = database

    def rows(self, endpoint: str | None) -> list[dict[str, Any]]:
        statement = select(table).order_by(table.c.started.desc())
        if endpoint is not None:
            statement = statement.where(table.c.endpoint == endpoint)
        with self._database.connect() as connection:
            return [dict(row) for row in connection.execute(statement).mappings()]

    def row(self, name: str) -> dict[str, Any] | None:
        with self._database.connect() as connection:
            found = connection.execute(select(table).where(table.c.name == name)).mappings().first()
        return dict(found) if found else None

    def insert(self, spec: Spec, before: Mapping[str, Any], traffic: Mapping[str, Any], by: str) -> None:
        with self._database.begin() as connection:
            connection.execute(
                insert(table).values(
                    name=spec.name,
                    endpoint=spec.endpoint,
                    state="RUNNING",
                    spec=spec.model_dump_json(),
                    before=json.dumps(before),
                    creator=by,
                    started=iso(time.time_ns()),
                )
            )
            audit.record(connection, by, "experiment.create", f"endpoint:{spec.endpoint}", before, traffic)

    def store(self, name: str, found: Mapping[str, Any] | None, spec: Spec | None = None) -> None:
        changed = {"report": json.dumps(found)} if found is not None else {}
        changed |= {"spec": spec.model_dump_json()} if spec is not None else {}
        with self._database.begin() as connection:
            connection.execute(update(table).where(table.c.name == name).values(**changed))

    def began(self, name: str, started: str) -> None:
        with self._database.begin() as connection:
            connection.execute(update(table).where(table.c.name == name).values(started=started))

    def end(self, name: str, state: str, reason: str, by: str, winner: str | None, traffic: Any = None) -> None:
        """A state and, in the same transaction, its line of the audit log."""
        row = self.row(name)
        assert row is not None
        action = {"PROMOTED": "promote", "ROLLED_BACK": "rollback", "DECIDED": "decide"}.get(state, "stop")
        with self._database.begin() as connection:
            values = {"state": state, "reason": reason[:2_000], "winner": winner, "ended": iso(time.time_ns())}
            connection.execute(update(table).where(table.c.name == name).values(**values))
            before = {"experiment": name, "state": row["state"]}
            after = {"experiment": name, "state": state, "reason": reason, "traffic_config": traffic}
            audit.record(connection, by, f"experiment.{action}", f"endpoint:{row['endpoint']}", before, after)

    def event(self, row: Mapping[str, Any], request_id: str, metric: str, value: float, owner: Caller | None) -> None:
        columns = inference_table.c
        wanted = (columns.databricks_request_id == request_id) & (columns.endpoint_name == row["endpoint"])
        with self._database.begin() as connection:
            call = connection.execute(select(columns.requester, columns.requester_kind).where(wanted)).first()
            if call is None or (owner is not None and tuple(call) != (owner.name, owner.kind)):
                raise not_found(f"There is no answer of {row['endpoint']} to you with this request id; use its x-request-id.")
            connection.execute(
                insert(experiment_events).values(
                    experiment=row["name"], request_id=request_id, name=metric, value=value, time=iso(time.time_ns())
                )
            )
