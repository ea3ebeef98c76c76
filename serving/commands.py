"""Commands that talk to endpoints: `ask` and `endpoints`; and `doctor`, which looks at the installation."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from serving.cli import CommandError, check

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]

_ENDPOINTS = {"name": "Name", "task": "Task", "state": "State", "description": "Description"}


def ask(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    endpoint: Annotated[
        str | None, typer.Option(help="The agent or model to ask; default: the only agent in smalti.yaml, else `assistant`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask an endpoint a question."""
    body = {"model": endpoint or context.obj.settings.main_agent, "input": question}
    with context.obj.connect() as client:
        if as_json:
            context.obj.print_json(check(client.post("/v1/responses", json=body)))
            return
        with client.stream("POST", "/v1/responses", json={**body, "stream": True}) as response:
            if not response.is_success:
                response.read()
                check(response)
            final = _print_stream(response.iter_lines())
    citations = (final.get("custom_outputs") or {}).get("citations") or []
    if citations:
        print()
        for citation in {c["number"]: c for c in citations}.values():
            print(f"[{citation['number']}] {citation['source']}")


def _print_stream(lines: Any) -> dict[str, Any]:
    for line in lines:
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line[6:])
        if event["type"] == "response.output_text.delta":
            print(event["delta"], end="", flush=True)
        elif event["type"] == "response.failed":
            raise CommandError(((event["response"].get("error") or {}).get("message")) or "The answer failed.")
        elif event["type"] in ("response.completed", "response.incomplete"):
            print()
            return event["response"]
    raise CommandError("The answer ended without a result; the server's log says why.")


def endpoints(context: typer.Context, as_json: Json = False) -> None:
    """List the endpoints."""
    with context.obj.connect() as client:
        found = check(client.get("/api/2.0/serving-endpoints"))["endpoints"]
    rows = found if as_json else [{**row, "state": row["state"]["ready"]} for row in found]
    context.obj.print_rows(rows, _ENDPOINTS, as_json=as_json, empty="No endpoints.")


def doctor(context: typer.Context, as_json: Json = False) -> None:
    """Check the installation and say what to do about what is wrong."""
    from serving.doctor import examine

    findings = examine(context.obj)
    if as_json:
        checks = [finding.as_dict() for finding in findings]
        context.obj.print_json({"ok": all(finding.ok for finding in findings), "checks": checks})
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.detail}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
