"""The `memory` commands: what agents remember of the user who holds a key, to be seen and forgotten by that user alone."""

from __future__ import annotations

from typing import Annotated, Any

import typer

memory = typer.Typer(name="memory", no_args_is_help=True, help="See and delete what agents remember of you.")

Key = Annotated[str, typer.Option(envvar="SMALTI_KEY", help="Your key: whose memory it is.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
_COLUMNS = {"namespace": "Namespace", "key": "Key", "value": "Remembered", "updated_at": "Changed"}


@memory.command("list")
def list_memory(
    context: typer.Context,
    key: Key,
    query: Annotated[str | None, typer.Option(help="Only what is closest to this, the closest first.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 100,
    as_json: Json = False,
) -> None:
    """What is remembered, the last first."""
    with context.obj.connect(key) as client:
        body = {"query": query, "limit": limit}
        found = context.obj.check(client.post("/store/items/search", json=body))["items"]
    context.obj.print_rows([_row(item) for item in found], _COLUMNS, as_json=as_json, empty="Nothing is remembered of you.")


@memory.command("delete")
def delete_memory(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The memory's key, as `list` shows it.")],
    key: Key,
    namespace: Annotated[str, typer.Option(help="Its namespace, parts joined by dots.")] = "memories",
) -> None:
    """Forget one thing."""
    parts = [part for part in namespace.split(".") if part]
    with context.obj.connect(key) as client:
        context.obj.check(client.get("/store/items", params={"namespace": namespace, "key": name}))
        client.request("DELETE", "/store/items", json={"namespace": parts, "key": name}).raise_for_status()
    typer.echo(f"Forgotten: {name}")


@memory.command("clear")
def clear_memory(context: typer.Context, key: Key) -> None:
    """Forget everything."""
    with context.obj.connect(key) as client:
        gone = context.obj.check(client.delete("/store"))["deleted"]
    typer.echo(f"Forgotten: {gone}")


def _row(item: dict[str, Any]) -> dict[str, Any]:
    value = item["value"]
    said = value["text"] if set(value) == {"text"} else value
    return {**item, "namespace": ".".join(item["namespace"]), "value": str(said)}
