"""The `conformance` command: makes a server ready for the programs that test it with real clients."""

from __future__ import annotations

from typing import Annotated

import typer

conformance = typer.Typer(no_args_is_help=True, help="Make a server ready to be tested with real clients.")


@conformance.callback()
def _group() -> None:
    """Keeps `prepare` a command of its own while it is the only one."""


@conformance.command("prepare")
def prepare(
    context: typer.Context,
    secret: Annotated[str, typer.Option(help="OAuth secret that the service principal `sp` gets.")] = "secret",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Register tiny models (chat, embeddings, rows), a table and the service principal `sp`, beside a running server or without.

    `sp` may make endpoints. Its secret is known to everyone: use this on servers for tests.
    """
    from governance.oauth import OAuth
    from serving.conformance.prepare import prepare as make

    work = context.obj
    where = {"registry": work.registry, "tracking_uri": work.tracking_uri}
    made = make(work.home.path, work.engine, OAuth(work.engine, work.identity), work.grants, secret=secret, **where)
    if as_json:
        work.print_json(made)
        return
    for model in made["models"]:
        print(f"{model['name']} version {model['version']} ({model['task'] or 'rows'}){'' if model['new'] else ', was there'}")
    print(f"table {made['table']} of {made['rows']} rows")
    print(f"service principal {made['client_id']} may make endpoints with the secret {made['client_secret']!r}")
