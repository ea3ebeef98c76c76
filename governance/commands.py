"""Commands of owners: `keys`, `grants`, `journal`. They work on the state folder itself, beside a running server."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]

keys = typer.Typer(no_args_is_help=True, help="Keys of users and service principals.")
grants = typer.Typer(no_args_is_help=True, help="Who may query or manage which endpoint or index.")
journal = typer.Typer(no_args_is_help=True, help="The record of every call.")

_KEYS = {"id": "ID", "name": "Name", "kind": "Kind", "groups": "Groups", "admin": "Admin", "label": "Label", "created": "Created"}
_KEYS |= {"expires": "Expires", "revoked": "Revoked"}
_GRANTS = {"principal": "Principal", "securable": "On", "level": "Level", "via": "Through"}
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
    as_json: Json = False,
) -> None:
    """Make a key and print it, this once."""
    work = context.obj
    kind = "service_principal" if service_principal else "user"
    groups = sorted({*work.identity.groups_of(name, kind), *(group or ())})
    key, secret = work.identity.create_key(
        name, kind=kind, groups=groups, admin=admin, ttl=days * 86400 if days else None, label=label
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
def list_keys(context: typer.Context, as_json: Json = False) -> None:
    """Keys, without their secrets."""
    rows = [key.as_dict() for key in context.obj.identity.list_keys()]
    context.obj.print_rows(rows, _KEYS, as_json=as_json, empty="No keys yet: smalti keys create NAME")


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
    level: Annotated[str, typer.Argument(help="CAN_VIEW, CAN_QUERY or CAN_MANAGE")] = "CAN_QUERY",
    as_json: Json = False,
) -> None:
    """Allow a principal something; an agent's endpoint brings its index and its model."""
    rows = [grant.as_dict() for grant in context.obj.grants.grant(principal, securable, level)]
    context.obj.print_rows(rows, _GRANTS, as_json=as_json, empty="")


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


@journal.command("export")
def export(
    context: typer.Context,
    endpoint: Annotated[str | None, typer.Option(help="Only rows of this endpoint or index.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows, oldest first.")] = None,
    as_json: Json = False,
) -> None:
    """The inference table: one row a call, one JSON object a line with --json."""
    work = context.obj
    rows = work.journal.rows(endpoint=endpoint, limit=limit)
    if as_json:
        for row in rows:
            sys.stdout.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        return
    shown: list[dict[str, Any]] = list(rows)
    work.print_rows(shown, _ROWS, as_json=False, empty="No calls yet.")
