"""What online scorers keep: the sampled calls, their scores, the windows that were looked at, the alerts. All blocking."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from evals.tables import create, now, online_alerts, online_calls, online_scores, online_windows

KEPT = 20_000
"""Calls kept of each endpoint; the oldest go, but for those of the reference window."""


class Scores:
    """The tables of live scores of a state database."""

    def __init__(self, database: Engine) -> None:
        self._database = database
        create(database)

    def add(
        self,
        request_id: str,
        endpoint: str,
        length: float,
        latency_ms: float,
        vector: Any,
        values: Mapping[str, tuple[float | None, str | None]],
    ) -> bool:
        """Keep a call with its scores, `(value, error)` by name; False where it is there already."""
        held = None if vector is None else vector.astype("float16").tobytes()
        call = {"request_id": request_id, "endpoint": endpoint, "time": now(), "length": length, "latency_ms": latency_ms}
        scores = [{"request_id": request_id, "name": name, "value": v, "error": e} for name, (v, e) in values.items()]
        try:
            with self._database.begin() as connection:
                made = connection.execute(insert(online_calls).values(**call, vector=held)).inserted_primary_key
                if scores:
                    connection.execute(insert(online_scores), scores)
        except IntegrityError:
            return False
        if made and made[0] % 1000 == 0:
            self._prune(endpoint)
        return True

    def begin(self, endpoint: str) -> None:
        """From the next call on a new reference window is gathered."""
        with self._database.begin() as connection:
            newest = (
                connection.execute(select(func.max(online_calls.c.id)).where(online_calls.c.endpoint == endpoint)).scalar() or 0
            )
            connection.execute(delete(online_windows).where(online_windows.c.endpoint == endpoint))
            connection.execute(insert(online_windows).values(endpoint=endpoint, since=newest, looked=0))

    def look(self, endpoint: str, *, reference: int, window: int, alpha: float) -> dict[str, Any] | None:
        """Compare the next whole window with the reference window; None where there is none yet."""
        with self._database.connect() as connection:
            row = connection.execute(select(online_windows).where(online_windows.c.endpoint == endpoint)).mappings().first()
            since, looked = (row["since"], row["looked"]) if row else (0, 0)
            ids = select(online_calls.c.id).where(online_calls.c.endpoint == endpoint).order_by(online_calls.c.id)
            base = connection.execute(ids.where(online_calls.c.id > since).limit(reference)).scalars().all()
            if len(base) < reference:
                return None
            new = connection.execute(ids.where(online_calls.c.id > max(looked, base[-1])).limit(window)).scalars().all()
        if len(new) < window:
            return None
        from evals.drift import compare

        before, first = self._series(endpoint, base[0], base[-1])
        after, second = self._series(endpoint, new[0], new[-1])
        vectors = (first, second) if first is not None and second is not None else None
        report = {"time": now(), "alpha": alpha, "series": compare(before, after, vectors=vectors, alpha=alpha)}
        values = {"looked": new[-1], "report": json.dumps(report)}
        with self._database.begin() as connection:
            here = online_windows.c.endpoint == endpoint
            if connection.execute(update(online_windows).where(here).values(**values)).rowcount == 0:
                connection.execute(insert(online_windows).values(endpoint=endpoint, since=since, **values))
        return report

    def alert(self, endpoint: str, told: Mapping[str, Any]) -> None:
        values = {"id": uuid.uuid4().hex, "endpoint": endpoint, "time": now(), "told": json.dumps(told), "attempts": 0}
        with self._database.begin() as connection:
            connection.execute(insert(online_alerts).values(**values))

    def undelivered(self, attempts: int) -> list[dict[str, Any]]:
        """Alerts still to be sent whose time has come: the pause after each attempt is twice that after the one before."""
        waiting = select(online_alerts).where(online_alerts.c.delivered.is_(None), online_alerts.c.attempts < attempts)
        with self._database.connect() as connection:
            rows = [dict(row) for row in connection.execute(waiting.order_by(online_alerts.c.time)).mappings()]
        found = []
        for row in rows:
            made = datetime.fromisoformat(row["time"])
            if row["attempts"] == 0 or datetime.now(UTC) >= made + timedelta(seconds=2 ** row["attempts"]):
                found.append({**row, "told": {**json.loads(row["told"]), "id": row["id"]}})
        return found

    def delivered(self, identity: str, problem: str | None, *, final: bool = False) -> None:
        done = {"delivered": now()} if problem is None or final else {}
        changed = {"attempts": online_alerts.c.attempts + 1, "problem": problem, **done}
        with self._database.begin() as connection:
            connection.execute(update(online_alerts).where(online_alerts.c.id == identity).values(**changed))

    def status(self, endpoint: str) -> dict[str, Any]:
        """Of an endpoint: calls scored, mean and errors of each score, the last look, the newest alerts."""
        calls, scores = online_calls.c, online_scores.c
        with self._database.connect() as connection:
            count = connection.execute(select(func.count()).where(calls.endpoint == endpoint)).scalar() or 0
            statement = (
                select(scores.name, func.avg(scores.value), func.count(scores.value), func.count(scores.error))
                .join(online_calls, calls.request_id == scores.request_id)
                .where(calls.endpoint == endpoint)
                .group_by(scores.name)
            )
            found = {
                name: {"mean": None if mean is None else float(mean), "n": n, "errors": errors}
                for name, mean, n, errors in connection.execute(statement)
            }
            window = connection.execute(select(online_windows.c.report).where(online_windows.c.endpoint == endpoint)).scalar()
            newest = select(online_alerts).where(online_alerts.c.endpoint == endpoint).order_by(online_alerts.c.time.desc())
            alerts = [
                {"time": row["time"], "delivered": row["delivered"], "problem": row["problem"], **json.loads(row["told"])}
                for row in connection.execute(newest.limit(20)).mappings()
            ]
        return {"calls": count, "scores": found, "drift": json.loads(window) if window else None, "alerts": alerts}

    def rows(self, endpoint: str, limit: int = 100) -> list[dict[str, Any]]:
        """The newest scored calls with their scores."""
        calls = online_calls.c
        with self._database.connect() as connection:
            statement = select(calls.request_id, calls.time, calls.latency_ms).where(calls.endpoint == endpoint)
            found = [dict(row) for row in connection.execute(statement.order_by(calls.id.desc()).limit(limit)).mappings()]
            wanted = [row["request_id"] for row in found]
            said: dict[str, dict[str, Any]] = {each: {} for each in wanted}
            for row in connection.execute(select(online_scores).where(online_scores.c.request_id.in_(wanted))).mappings():
                told = {"value": row["value"], **({"error": row["error"]} if row["error"] else {})}
                said[row["request_id"]][row["name"]] = told
        return [{**row, "scores": said[row["request_id"]]} for row in found]

    def _series(self, endpoint: str, first: int, last: int) -> tuple[dict[str, Sequence[float | None]], Any]:
        import numpy as np

        calls = online_calls.c
        within = (calls.endpoint == endpoint) & calls.id.between(first, last)
        with self._database.connect() as connection:
            rows = connection.execute(select(online_calls).where(within).order_by(calls.id)).mappings().all()
            joined = select(online_scores.c.name, online_scores.c.value).join(
                online_calls, calls.request_id == online_scores.c.request_id
            )
            scored = connection.execute(joined.where(within)).all()
        series: dict[str, list[float | None]] = {
            "question_length": [row["length"] for row in rows],
            "latency_ms": [row["latency_ms"] for row in rows],
        }
        for name, value in scored:
            series.setdefault(name, []).append(value)
        vectors = [np.frombuffer(row["vector"], np.float16) for row in rows if row["vector"]]
        return dict(series), np.stack(vectors) if vectors else None

    def _prune(self, endpoint: str) -> None:
        calls = online_calls.c
        with self._database.begin() as connection:
            since = connection.execute(select(online_windows.c.since).where(online_windows.c.endpoint == endpoint)).scalar() or 0
            mine = select(calls.id).where(calls.endpoint == endpoint)
            oldest = connection.execute(mine.order_by(calls.id.desc()).offset(KEPT).limit(1)).scalar()
            kept = connection.execute(mine.where(calls.id > since).order_by(calls.id).offset(KEPT // 2).limit(1)).scalar()
            if oldest is None or kept is None:
                return
            gone = (calls.endpoint == endpoint) & (calls.id >= kept) & (calls.id <= oldest)
            names = select(calls.request_id).where(gone)
            connection.execute(delete(online_scores).where(online_scores.c.request_id.in_(names)))
            connection.execute(delete(online_calls).where(gone))
