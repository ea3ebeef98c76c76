"""Commands of owners, on the state folder itself, beside a running server: keys, grants, journal, usage, limits, audit."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]

keys = typer.Typer(no_args_is_help=True, help="Keys of users and service principals.")
grants = typer.Typer(no_args_is_help=True, help="Who may query or manage which endpoint or index.")
journal = typer.Typer(no_args_is_help=True, help="The record of every call.")

_KEYS = {"id": "ID", "name": "Name", "kind": "Kind", "groups": "Groups", "admin": "Admin", "label": "Label", "expires": "Expires"}
_GRANTS = {"principal": "Principal", "securable": "On", "level": "Level", "via": "Through"}
_USAGE = {"requests": "Requests", "errors": "Errors", "input_tokens": "Read", "output_tokens": "Written", "cost": "$"}
_LIMITS = {"endpoint": "Endpoint", "key": "Key", "principal": "Principal", "renewal_period": "Period", "calls": "Calls"}
_LIMITS |= {"tokens": "Tokens", "cost": "$", "soft": "Soft", "used": "Used"}
_SAID = ("id", "created")
"""Fields of a key that the columns of its entry in the audit log say."""
_AUDIT = {"time": "Time (UTC)", "actor": "Who", "action": "What", "subject": "On", "change": "Change"}
_ROWS = {
    "request_time": "Time",
    "status_code": "Status",
    "endpoint_name": "Endpoint",
    "requester": "Caller",
    "execution_duration_ms": "ms",
    "databricks_request_id": "Request",
}


@keys.command("create")
def create_key(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The user or service principal the key is for.")],
    service_principal: Annotated[bool, typer.Option("--service-principal", help="NAME is a program, not a person.")] = False,
    group: Annotated[list[str] | None, typer.Option(help="Put NAME in this group too; may be given again.")] = None,
    endpoint: Annotated[list[str] | None, typer.Option(help="Grant CAN_QUERY on this endpoint.")] = None,
    index: Annotated[list[str] | None, typer.Option(help="Grant CAN_QUERY on this index.")] = None,
    admin: Annotated[bool, typer.Option("--admin", help="NAME may do everything with this key.")] = False,
    days: Annotated[float | None, typer.Option(min=0.001, help="The key expires after so many days.")] = None,
    label: Annotated[str, typer.Option(help="A note for the list.")] = "",
    scope: Annotated[list[str] | None, typer.Option(help="The key is good for this endpoint:NAME or index:NAME only.")] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once."""
    work = context.obj
    kind = "service_principal" if service_principal else "user"
    groups = sorted({*work.identity.groups_of(name, kind), *(group or ())})
    key, secret = work.identity.create_key(
        name, kind=kind, groups=groups, admin=admin, ttl=days * 86400 if days else None, label=label, scopes=scope or None
    )
    wanted = [f"endpoint:{item}" for item in endpoint or ()] + [f"index:{item}" for item in index or ()]
    granted = [grant.as_dict() for item in wanted for grant in work.grants.grant(f"{kind}:{name}", item, "CAN_QUERY")]
    if as_json:
        work.print_json({**key.as_dict(), "key": secret, "grants": granted})
        return
    print(f"Key {key.id} for {name}, shown only now:\n\n  {secret}\n")
    for grant in granted:
        print(f"granted {grant['level']} on {grant['securable']} to {grant['principal']}")
    if not (granted or admin or groups):
        print(f"{name} may not call anything yet: smalti grants add {kind}:{name} endpoint:assistant")


@keys.command("list")
def list_keys(
    context: typer.Context,
    everything: Annotated[bool, typer.Option("--all", help="Also keys that are revoked or have expired.")] = False,
    as_json: Json = False,
) -> None:
    """Keys that are valid, without their secrets."""
    rows = [key.as_dict() for key in context.obj.identity.list_keys() if everything or key.live]
    context.obj.print_rows(rows, _KEYS, as_json=as_json, empty="No keys yet: smalti keys create NAME")


@keys.command("rotate")
def rotate_key(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="ID")],
    overlap: Annotated[float, typer.Option(min=0, help="Hours for which the old key goes on working.")] = 24.0,
    as_json: Json = False,
) -> None:
    """Make a key in place of another, with the same rights, and print it, this once."""
    key, secret = context.obj.identity.rotate(key_id, overlap=overlap * 3600)
    if as_json:
        context.obj.print_json({**key.as_dict(), "key": secret})
    else:
        print(f"Key {key.id} for {key.name}, shown only now; {key_id} works for {overlap:g} hours more:\n\n  {secret}\n")


@keys.command("revoke")
def revoke_key(context: typer.Context, key_id: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Make a key invalid, from the next request on."""
    key = context.obj.identity.revoke(key_id)
    if as_json:
        context.obj.print_json(key.as_dict())
    else:
        print(f"Key {key.id} of {key.name} is revoked.")


@keys.command("oauth")
def oauth_secret(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The service principal, which is the client id.")],
    revoke: Annotated[bool, typer.Option("--revoke", help="End the secrets of NAME, and the tokens they gave, instead.")] = False,
    as_json: Json = False,
) -> None:
    """Make an OAuth secret of a service principal and print it, this once."""
    from governance.oauth import OAuth

    oauth = OAuth(context.obj.engine, context.obj.identity)
    if revoke:
        told: dict[str, Any] = {"client_id": name, "revoked": oauth.revoke(name)}
    else:
        told = {"client_id": name, "client_secret": oauth.create_secret(name)}
    if as_json:
        context.obj.print_json(told)
    elif revoke:
        print(f"{told['revoked']} secrets of {name} are revoked.")
    else:
        print(f"Secret of {name}, shown only now:\n\n  {told['client_secret']}\n")


_Principal = Annotated[str, typer.Argument(help="user:NAME, group:NAME or service_principal:NAME")]
_Securable = Annotated[str, typer.Argument(help="endpoint:NAME or index:FULL.NAME")]


@grants.command("add")
def add_grant(
    context: typer.Context,
    principal: _Principal,
    securable: _Securable,
    level: Annotated[
        str, typer.Argument(help="CAN_VIEW, CAN_QUERY or CAN_MANAGE; of a model also BROWSE, EXECUTE or MANAGE")
    ] = "CAN_QUERY",
    as_json: Json = False,
) -> None:
    """Allow a principal something; an agent's endpoint brings its index and its model."""
    rows = [grant.as_dict() for grant in context.obj.grants.grant(principal, securable, level)]
    context.obj.print_rows(rows, _GRANTS, as_json=as_json, empty="")
    if told := context.obj.missing(rows[0]["securable"]):  # it may come later; a misspelt one never does
        print(f"note: {told.rstrip('.')}. The grant counts once there is one of that name.", file=sys.stderr)


@grants.command("list")
def list_grants(context: typer.Context, as_json: Json = False) -> None:
    """What was granted. What is not here is denied."""
    rows = [grant.as_dict() for grant in context.obj.grants.list()]
    context.obj.print_rows(rows, _GRANTS, as_json=as_json, empty="Nothing is granted; administrators may do everything.")


@grants.command("remove")
def remove_grant(context: typer.Context, principal: _Principal, securable: _Securable, as_json: Json = False) -> None:
    """Take a grant back, with what came through it."""
    removed = context.obj.grants.revoke(principal, securable)
    if as_json:
        context.obj.print_json({"removed": removed})
    else:
        print(f"{removed} taken back.")


_Endpoint = Annotated[str | None, typer.Option(help="Only rows of this endpoint or index.")]


@journal.command("export")
def export(
    context: typer.Context,
    endpoint: _Endpoint = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows, oldest first.")] = None,
    since: Annotated[str | None, typer.Option(help="Only calls from this time on, ISO 8601.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write this Parquet file.")] = None,
    delta: Annotated[Path | None, typer.Option(help="Write a Delta table to this folder.")] = None,
    as_json: Json = False,
) -> None:
    """The inference table: one row a call, one JSON object a line with --json, or a file that Spark and DuckDB read."""
    work = context.obj
    rows = work.journal.rows(since, endpoint=endpoint, limit=limit)
    for path, form in ((parquet, "parquet"), (delta, "delta")):
        if path is not None:
            from governance import export as writing

            count = getattr(writing, form)(rows, path)
            if as_json:
                work.print_json({"rows": count, "path": str(path)})
            else:
                print(f"{count} rows written to {path}")
            return
    _show(work, rows, as_json)


@journal.command("query")
def query(
    context: typer.Context,
    endpoint: _Endpoint = None,
    caller: Annotated[str | None, typer.Option(help="Only calls of this user or service principal.")] = None,
    status: Annotated[int | None, typer.Option(help="Only calls with this status.")] = None,
    since: Annotated[str | None, typer.Option(help="Only calls from this time on, ISO 8601.")] = None,
    request_id: Annotated[str | None, typer.Option(help="Only this call.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows, newest first.")] = 100,
    as_json: Json = False,
) -> None:
    """Find calls, the newest first."""
    found = context.obj.journal.rows(since, endpoint=endpoint, request_id=request_id, newest=True)
    wanted = {name: value for name, value in (("requester", caller), ("status_code", status)) if value is not None}
    chosen = (row for row in found if all(row[name] == value for name, value in wanted.items()))
    _show(context.obj, islice(chosen, limit), as_json)


@journal.command("tail")
def tail(
    context: typer.Context,
    count: Annotated[int, typer.Option("-n", min=1, help="So many of the newest calls.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with the calls that come.")] = False,
    endpoint: _Endpoint = None,
    as_json: Json = False,
) -> None:
    """The newest calls, oldest of them first."""
    work = context.obj
    shown = list(work.journal.rows(endpoint=endpoint, limit=count, newest=True))[::-1]
    _show(work, shown, as_json)
    seen = {row["databricks_request_id"] for row in shown}
    since = shown[-1]["request_time"] if shown else None
    while follow:
        time.sleep(0.5)
        fresh = [row for row in work.journal.rows(since, endpoint=endpoint) if row["databricks_request_id"] not in seen]
        if fresh:
            _show(work, fresh, as_json)
            seen |= {row["databricks_request_id"] for row in fresh}


@journal.command("prune")
def prune(
    context: typer.Context,
    days: Annotated[float, typer.Option(min=0, help="Keep the rows of so many days, delete older ones.")],
    as_json: Json = False,
) -> None:
    """Delete old rows of the inference table, and what was counted for budgets of months before."""
    from governance.retention import keep

    work = context.obj
    count = keep(work.engine, work.journal, days)
    if as_json:
        work.print_json({"deleted": count, "days": days})
    else:
        print(f"{count} rows older than {days:g} days deleted.")


def usage(
    context: typer.Context,
    by: Annotated[str, typer.Option(help="What to count by: some of endpoint,requester,day.")] = "endpoint,requester,day",
    since: Annotated[str | None, typer.Option(help="From this day on, as 2026-11-22.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this day.")] = None,
    as_json: Json = False,
) -> None:
    """Requests, tokens and cost, by endpoint, caller and day."""
    from governance.usage import usage as count

    work = context.obj
    work.journal.ingest()
    groups = [name for name in by.split(",") if name]
    rows = count(work.engine, by=groups, since=since, until=until)
    shown = rows if as_json else [{**row, "cost": f"{row['cost']:.4f}"} for row in rows]
    work.print_rows(shown, {name: name.capitalize() for name in groups} | _USAGE, as_json=as_json, empty="No calls yet.")


def limits(context: typer.Context, as_json: Json = False) -> None:
    """The limits in force, and what is used of those of a day and a month."""
    from governance.budgets import Budgets
    from governance.policies import Policies

    work = context.obj
    declared = {each.name: each.ai_gateway for each in work.settings.endpoints if each.ai_gateway is not None}
    used: dict[tuple[str, ...], list[str]] = {}
    for (endpoint, metric, kind, whose, period), amount in Budgets(work.engine).used().items():
        spent = f"{amount / 1e6:.4f}" if metric == "cost" else str(amount)
        name = "day" if len(period) == 10 else "month"
        used.setdefault((endpoint, kind, name), []).append(f"{whose or endpoint}: {spent} {metric}")
    rows = []
    for name, policy in Policies(work.engine, declared).list().items():
        for limit in policy.as_dict().get("rate_limits", ()):
            key = (name, limit.get("key", "endpoint"), limit.get("renewal_period", "minute"))
            rows.append({"endpoint": name, **limit, "used": used.get(key, [])})
    work.print_rows(rows, _LIMITS, as_json=as_json, empty="No limits: set ai_gateway.rate_limits of an endpoint.")


def audit(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, help="At most so many changes, newest first.")] = 50,
    subject: Annotated[str | None, typer.Option(help="Only changes of this, as endpoint:assistant or key:ID.")] = None,
    sessions: Annotated[
        bool, typer.Option("--sessions", help="Also keys that commands, sign-ins and tokens made and ended.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Who changed which key, grant or policy, when, and from what to what."""
    from governance.audit import entries
    from governance.tables import create

    work = context.obj
    create(work.engine)
    rows = entries(work.engine, limit=limit, subject=subject, sessions=sessions)
    if not as_json:
        rows = [
            {**row, "time": row["time"][:19].replace("T", " "), "change": _change(row["before"], row["after"])} for row in rows
        ]
    work.print_rows(rows, _AUDIT, as_json=as_json, empty="No changes yet.")


def _change(before: Any, after: Any) -> str:
    """What a change did, in a line: the fields that it changed, or what was made or ended."""
    empty = (None, "", [], {})
    if isinstance(before, dict) and isinstance(after, dict):
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        return ", ".join(f"{name}: {_brief(before.get(name))} → {_brief(after.get(name))}" for name in names)
    if before in empty or after in empty:
        was, found = ("was ", before) if after in empty else ("", after)
        if not isinstance(found, dict):
            return was + _brief(found) if found not in empty else ""
        said = {name: value for name, value in found.items() if name not in _SAID and value not in (*empty, False)}
        return was + ", ".join(f"{name}: {_brief(value)}" for name, value in said.items())
    return f"{_brief(before)} → {_brief(after)}"


def _brief(value: Any) -> str:
    return "–" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _show(work: Any, rows: Iterable[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        for row in rows:
            sys.stdout.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        sys.stdout.flush()
    else:
        work.print_rows(list(rows), _ROWS, as_json=False, empty="No calls yet.")
