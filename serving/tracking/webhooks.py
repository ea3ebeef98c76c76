"""Webhooks of the model registry, as databricks-sdk's `model_registry` makes them: told after a change, by threads of their own.

A hook on one model needs CAN_MANAGE on it, one on all models CAN_MANAGE on `model:*`; it is told of changes as long as who made
it may do so. With a secret, `X-Databricks-Signature` is the HMAC-SHA256 of the body under it, in hexadecimal digits.
Sources: https://docs.databricks.com/api/workspace/modelregistry and …/mlflow/model-registry-webhooks
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, insert, select, update

from governance import audit
from governance.call import Caller, CallError, bad_request, new_id, not_found
from serving import outbound
from serving.secrets.scopes import cipher
from serving.tables import registry_webhooks as table
from serving.tracking.access import EVERY, Change, ModelAccess

logger = logging.getLogger(__name__)

_MOVES = ("STAGING", "PRODUCTION", "ARCHIVED")
EVENTS = (
    "MODEL_VERSION_CREATED",
    "MODEL_VERSION_TRANSITIONED_STAGE",
    "TRANSITION_REQUEST_CREATED",
    "COMMENT_CREATED",
    "REGISTERED_MODEL_CREATED",
    "MODEL_VERSION_TAG_SET",
    *(f"MODEL_VERSION_TRANSITIONED_TO_{stage}" for stage in _MOVES),
    *(f"TRANSITION_REQUEST_TO_{stage}_CREATED" for stage in _MOVES),
)
STATES = ("ACTIVE", "DISABLED", "TEST_MODE")
PAUSES = (1.0, 4.0)
"""Seconds before a second and a third try."""
_ONE_LINE = re.compile(r"[ -~]{0,4096}")
_WAITING = 1_000
_WORKERS = 4


class Webhooks:
    """The hooks of one database, and what sends them. Methods block and raise `CallError`.

    Parameters
    ----------
    database: the state database.
    pepper: of the state folder, for the hooks' secrets.
    access: grants on models.
    hosts: hosts in private networks that a hook may be at.
    holder: who bears a name now, for work that goes on after their request; None where no key of theirs is good.
    """

    def __init__(
        self,
        database: Engine,
        pepper: Path,
        access: ModelAccess,
        *,
        hosts: Collection[str] = (),
        holder: Callable[[str], Caller | None],
    ) -> None:
        self._database, self._pepper, self._access = database, pepper, access
        self._hosts, self._holder = hosts, holder
        self._waiting: queue.Queue[tuple[Mapping[str, Any], bytes] | None] = queue.Queue(_WAITING)
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._beginning = threading.Lock()

    # --- what there is ---

    def create(self, who: Caller, fields: Mapping[str, Any]) -> dict[str, Any]:
        model = fields.get("model_name") or None
        if model is not None and not isinstance(model, str):
            raise bad_request("Field 'model_name' must be the name of a registered model.", "model_name")
        self._check(who, model)
        if model is not None and not self._access.registry.known(model):
            raise not_found(f"There is no registered model {model!r}.")
        values = self._values(fields, model)
        if not values.get("url") or not values.get("events"):
            missing = "events" if not values.get("events") else "http_url_spec"
            raise bad_request(f"Field {missing!r} is missing: send events and an http_url_spec with a url.", missing)
        now = time.time_ns() // 1_000_000
        known = {"description": "", "status": "ACTIVE", "verify": True, "secret": None, "authorization": None}
        made = {"id": new_id(), "model": model, "creator": who.principal, "created": now, "updated": now}
        row = {**known, **values, **made}
        with self._database.begin() as connection:
            connection.execute(insert(table).values(**row))
            audit.record(connection, who.name, "webhook.create", _subject(row), after=_told(row))
        return _told(row)

    def update(self, who: Caller, fields: Mapping[str, Any]) -> dict[str, Any]:
        row = self._row(who, fields.get("id"))
        changed = {**self._values(fields, row["model"]), "updated": time.time_ns() // 1_000_000}
        new = {**row, **changed}
        with self._database.begin() as connection:
            connection.execute(update(table).where(table.c.id == row["id"]).values(**changed))
            audit.record(connection, who.name, "webhook.update", _subject(row), _told(row), _told(new))
        return _told(new)

    def remove(self, who: Caller, identifier: Any) -> None:
        row = self._row(who, identifier)
        with self._database.begin() as connection:
            connection.execute(delete(table).where(table.c.id == row["id"]))
            audit.record(connection, who.name, "webhook.remove", _subject(row), _told(row))

    def list(self, who: Caller, model: str | None, events: Sequence[str]) -> list[dict[str, Any]]:
        """Those that the caller may change, oldest first."""
        with self._database.connect() as connection:
            rows = [dict(row) for row in connection.execute(select(table).order_by(table.c.created, table.c.id)).mappings()]
        wanted = [row for row in rows if (not model or row["model"] == model) and self._manages(who, row["model"])]
        return [_told(row) for row in wanted if not events or set(events) & set(json.loads(row["events"]))]

    def test(self, who: Caller, identifier: Any, event: str | None) -> dict[str, Any]:
        """Send an example now; the status and the beginning of the answer."""
        row = self._row(who, identifier)
        chosen = event or json.loads(row["events"])[0]
        if chosen not in EVENTS:
            raise bad_request(f"Field 'event' must be one of {', '.join(EVENTS)}.", "event")
        example = {"model_name": row["model"] or "main.default.model", "version": "1", "text": "This is a test of the webhook."}
        try:
            status, body = self._send(row, _payload(row, chosen, example))
        except outbound.Unsent as error:
            raise bad_request(f"The webhook cannot be reached: {error}") from None
        return {"status_code": status, "body": body}

    def follow(self, model: str, new: str | None) -> None:
        """A model has another name, or is gone."""
        of_it = table.c.model == model
        with self._database.begin() as connection:
            connection.execute(update(table).where(of_it).values(model=new) if new else delete(table).where(of_it))

    def _row(self, who: Caller, identifier: Any) -> dict[str, Any]:
        with self._database.connect() as connection:
            row = connection.execute(select(table).where(table.c.id == str(identifier or ""))).mappings().first()
        if row is None or not self._manages(who, row["model"]):
            raise not_found(f"There is no webhook {str(identifier or '')[:80]!r} that you may change.")
        return dict(row)

    def _check(self, who: Caller, model: str | None) -> None:
        if model is None:
            self._access.grants.check(who, EVERY, "CAN_MANAGE")
        else:
            self._access.check(who, model, "CAN_MANAGE")

    def _manages(self, who: Caller, model: str | None) -> bool:
        try:
            self._check(who, model)
        except CallError:
            return False
        return True

    def _values(self, fields: Mapping[str, Any], model: str | None) -> dict[str, Any]:
        """The columns that a request gives."""
        if fields.get("job_spec"):
            raise CallError("There are no jobs here to run: send an http_url_spec.", status=400, code="FEATURE_DISABLED")
        values: dict[str, Any] = {}
        if (events := fields.get("events")) is not None:
            if not isinstance(events, list) or not events or not all(event in EVENTS for event in events):
                raise bad_request(f"Field 'events' must be a list of {', '.join(EVENTS)}.", "events")
            if model is not None and "REGISTERED_MODEL_CREATED" in events:
                raise bad_request("REGISTERED_MODEL_CREATED is for a webhook on all models: leave out model_name.", "events")
            values["events"] = json.dumps(list(dict.fromkeys(events)))
        if (description := fields.get("description")) is not None:
            if not isinstance(description, str) or len(description) > 4096:
                raise bad_request("Field 'description' must be a text of up to 4096 characters.", "description")
            values["description"] = description
        if (status := fields.get("status")) is not None:
            if status not in STATES:
                raise bad_request(f"Field 'status' must be one of {', '.join(STATES)}.", "status")
            values["status"] = status
        if (spec := fields.get("http_url_spec")) is not None:
            values |= self._spec(spec)
        return values

    def _spec(self, spec: Any) -> dict[str, Any]:
        url = spec.get("url") if isinstance(spec, dict) else None
        if not isinstance(url, str) or len(url) > 2048:
            raise bad_request("Field 'http_url_spec.url' must be an address.", "http_url_spec.url")
        try:
            outbound.check(url, self._hosts)
        except ValueError as error:
            raise bad_request(f"Field 'http_url_spec.url' cannot be used: {error}.", "http_url_spec.url") from None
        values: dict[str, Any] = {"url": url, "verify": spec.get("enable_ssl_verification") is not False}
        for key in ("secret", "authorization"):  # of another address: what is not sent again is no longer there
            given = spec.get(key)
            if given is not None and not (isinstance(given, str) and _ONE_LINE.fullmatch(given)):
                raise bad_request(f"Field 'http_url_spec.{key}' must be one line of ASCII.", f"http_url_spec.{key}")
            values[key] = self._cipher().encrypt(given.encode()).decode() if given else None
        return values

    def _cipher(self) -> Any:
        return cipher(self._pepper, b"smalti webhook secrets")

    # --- what is sent ---

    def __call__(self, change: Change) -> None:
        """Tell the hooks of a change of the registry: each once, later."""
        events = _events(change)
        if not events:
            return
        wanted = select(table).where(table.c.status == "ACTIVE", (table.c.model == change.name) | table.c.model.is_(None))
        with self._database.connect() as connection:
            rows = [dict(row) for row in connection.execute(wanted).mappings()]
        for row in rows:
            event = next((each for each in json.loads(row["events"]) if each in events), None)
            if event is None:
                continue
            try:
                self._waiting.put_nowait((row, _payload(row, event, _content(change))))
            except queue.Full:
                logger.warning("Webhook %s was not told of %s: %d wait already", row["id"], event, _WAITING)
                continue
            self._begin()

    def _begin(self) -> None:
        with self._beginning:
            if not self._threads and not self._ending.is_set():
                self._threads = [threading.Thread(target=self._work, name="webhooks", daemon=True) for _ in range(_WORKERS)]
                for thread in self._threads:
                    thread.start()

    def close(self, timeout: float = 5) -> None:
        """Send what waits, for `timeout` seconds at most, and end."""
        self._ending.set()
        deadline = time.monotonic() + timeout
        for _ in self._threads:
            try:
                self._waiting.put(None, timeout=max(0, deadline - time.monotonic()))
            except queue.Full:
                break
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            row, body = item
            try:
                creator = self._holder(row["creator"].partition(":")[2])
                if creator is None or creator.principal != row["creator"] or not self._manages(creator, row["model"]):
                    problem = "who made it may no longer manage what it tells of"
                else:
                    problem = self._deliver(row, body)
                if problem:
                    logger.warning("Webhook %s was not told: %s", row["id"], problem)
                    audit.note(self._database, row["creator"].partition(":")[2], "webhook.failed", _subject(row), after=problem)
            except Exception:  # one hook must never end the others
                logger.exception("Webhook %s was not told", row["id"])

    def _deliver(self, row: Mapping[str, Any], body: bytes) -> str | None:
        """What went wrong with the last of three tries; None where one went well. Answers of 4xx are not asked again."""
        problem = None
        for pause in (0.0, *PAUSES):
            if pause and self._ending.wait(pause):
                break
            try:
                status, _ = self._send(row, body)
            except outbound.Unsent as error:
                problem = str(error)
                continue
            if 200 <= status < 300:
                return None
            problem = f"it answered HTTP {status}"
            if status < 500 and status != 429:
                break
        return problem

    def _send(self, row: Mapping[str, Any], body: bytes) -> tuple[int, str]:
        headers = {}
        if row["secret"]:
            secret = self._cipher().decrypt(row["secret"].encode())
            headers["x-databricks-signature"] = hmac.new(secret, body, hashlib.sha256).hexdigest()
        if row["authorization"]:
            headers["authorization"] = self._cipher().decrypt(row["authorization"].encode()).decode()
        return outbound.post(row["url"], body, headers, hosts=self._hosts, verify=row["verify"])


def _subject(row: Mapping[str, Any]) -> str:
    return f"webhook:{row['id']}"


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """A hook without its secrets."""
    about = {
        "id": row["id"], "events": json.loads(row["events"]), "status": row["status"], "description": row["description"],
        "http_url_spec": {"url": row["url"], "enable_ssl_verification": bool(row["verify"])},
        "creation_timestamp": row["created"], "last_updated_timestamp": row["updated"],
    }  # fmt: skip
    return {**about, **({"model_name": row["model"]} if row["model"] else {})}


def _events(change: Change) -> list[str]:
    """What a change is to hooks; the general before the particular."""
    stage = change.stage.upper()
    match change.resource, change.action:
        case "registered-models", "create" if not _is_prompt(change.fields):
            return ["REGISTERED_MODEL_CREATED"]
        case "model-versions", "create" | "finish" if not _is_prompt(change.fields):
            return ["MODEL_VERSION_CREATED"]
        case "model-versions", "set-tag":
            return ["MODEL_VERSION_TAG_SET"]
        case "comments", "create":
            return ["COMMENT_CREATED"]
        case "model-versions", "transition-stage":
            return ["MODEL_VERSION_TRANSITIONED_STAGE", f"MODEL_VERSION_TRANSITIONED_TO_{stage}"]
        case "transition-requests", "create":
            return ["TRANSITION_REQUEST_CREATED", f"TRANSITION_REQUEST_TO_{stage}_CREATED"]
    return []


def _is_prompt(fields: Mapping[str, Any]) -> bool:
    tags = fields.get("tags")
    return isinstance(tags, list) and any(isinstance(tag, dict) and tag.get("key") == "mlflow.prompt.is_prompt" for tag in tags)


def _content(change: Change) -> dict[str, Any]:
    """What a hook is told of a change, besides the event."""
    fields, who = change.fields, change.who.name
    told: dict[str, Any] = {"model_name": change.name, **({"version": change.version} if change.version else {})}
    which = f"registered model '{change.name}'" + (f" version {change.version}" if change.version else "")
    match change.resource, change.action:
        case "registered-models", _:
            told["text"] = f"{who} created {which}."
        case "comments", _:
            told |= {"comment": fields.get("comment", ""), "text": f"{who} commented on {which}."}
        case _, "set-tag":
            told["tags"] = [{"key": str(fields.get("key", "")), "value": str(fields.get("value", ""))}]
            told["text"] = f"{who} set tag {fields.get('key')!r} on {which}."
        case "transition-requests", _:
            told |= {"to_stage": change.stage, "text": f"{who} requested that {which} be {change.stage}."}
        case _, "transition-stage":
            told |= {"to_stage": change.stage, "text": f"{who} moved {which} to {change.stage}."}
        case _:
            told |= {key: str(fields[key]) for key in ("source", "run_id") if fields.get(key)}
            told["text"] = f"{who} created {which}."
    if before := fields.get("from_stage"):
        told["from_stage"] = before
    return told


def _payload(row: Mapping[str, Any], event: str, content: Mapping[str, Any]) -> bytes:
    head = {"event": event, "webhook_id": row["id"], "event_timestamp": time.time_ns() // 1_000_000}
    return json.dumps({**head, **content}).encode()
