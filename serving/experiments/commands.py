"""`smalti experiments`: live experiments of the server of this state folder."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from serving.cli import check

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
Name = Annotated[str, typer.Argument(help="The experiment's name.")]

experiments = typer.Typer(no_args_is_help=True, help="A/B tests under real traffic.")

_AT = "/api/2.0/smalti/experiments"
_LIST = {"name": "Name", "endpoint": "Endpoint", "mode": "Mode", "state": "State", "text": "Verdict"}
_METRICS = {
    "metric": "Metric",
    "arm": "Arm",
    "units": "Units",
    "mean": "Mean",
    "difference": "Against control",
    "verdict": "Verdict",
}


@experiments.command()
def create(
    context: typer.Context,
    name: Name,
    endpoint: Annotated[str, typer.Argument(help="The endpoint whose served entities are the arms.")],
    arm: Annotated[list[str] | None, typer.Option(help="ENTITY=PERCENT; may be given again. Default: its routes.")] = None,
    control: Annotated[str, typer.Option(help="The arm that others are compared with; default: the first.")] = "",
    metric: Annotated[str, typer.Option(help="What the winner is better in.")] = "user_feedback",
    mode: Annotated[str, typer.Option(help="fixed, shadow or track-and-stop.")] = "fixed",
    sticky: Annotated[str, typer.Option(help="What stays with its arm: thread, user or request.")] = "thread",
    guardrail: Annotated[list[str] | None, typer.Option(help="METRIC=MARGIN; default: error=0.02.")] = None,
    alias: Annotated[str | None, typer.Option(help="Alias that `promote` gives to the winner's model version.")] = None,
    as_json: Json = False,
) -> None:
    """Begin an experiment; its endpoint's calls are dealt to the arms from now on."""
    body: dict[str, Any] = {
        "name": name,
        "endpoint": endpoint,
        "control": control,
        "metric": metric,
        "mode": mode,
        "sticky": sticky,
    }
    if arm:
        pairs = [_pair(each, "--arm", int) for each in arm]
        body["arms"] = [{"served_entity_name": entity, "traffic_percentage": share} for entity, share in pairs]
    if guardrail:
        body["guardrails"] = [{"metric": m, "margin": value} for m, value in (_pair(g, "--guardrail", float) for g in guardrail)]
    if alias:
        body["alias"] = alias
    with context.obj.connect() as client:
        _print(context, check(client.post(_AT, json=body)), as_json)


@experiments.command("list")
def listing(context: typer.Context, as_json: Json = False) -> None:
    """Experiments, the newest first."""
    with context.obj.connect() as client:
        found = check(client.get(_AT))["experiments"]
    rows = found if as_json else [{**each, "text": each["verdict"]["text"]} for each in found]
    context.obj.print_rows(rows, _LIST, as_json=as_json, empty="No experiments yet: smalti experiments create NAME ENDPOINT")


@experiments.command()
def show(context: typer.Context, name: Name, as_json: Json = False) -> None:
    """What is known now: each metric of each arm, and the verdict in words."""
    with context.obj.connect() as client:
        _print(context, check(client.get(f"{_AT}/{name}")), as_json)


@experiments.command()
def promote(
    context: typer.Context,
    name: Name,
    winner: Annotated[str | None, typer.Argument(help="The arm; default: the one that is shown to be the best.")] = None,
    as_json: Json = False,
) -> None:
    """Give the winner all traffic, and its model version the alias."""
    with context.obj.connect() as client:
        answer = client.post(f"{_AT}/{name}/promote", json={"served_entity_name": winner} if winner else {})
        _print(context, check(answer), as_json)


@experiments.command()
def rollback(
    context: typer.Context,
    name: Name,
    reason: Annotated[str | None, typer.Option(help="Kept in the audit log.")] = None,
    as_json: Json = False,
) -> None:
    """Give the traffic back to whom it went before the experiment, at once; also after a promotion."""
    with context.obj.connect() as client:
        _print(context, check(client.post(f"{_AT}/{name}/rollback", json={"reason": reason} if reason else {})), as_json)


def _pair(text: str, option: str, kind: Any) -> tuple[str, Any]:
    name, _, value = text.rpartition("=")
    try:
        if name:
            return name, kind(value)
    except ValueError:
        pass
    raise typer.BadParameter(f"{option} takes NAME=NUMBER, not {text!r}")


def _print(context: typer.Context, found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        context.obj.print_json(found)
        return
    rows = []
    for metric in found["metrics"]:
        compared = {each["served_entity_name"]: each for each in metric["differences"]}
        for arm in metric["arms"]:
            each = compared.get(arm["served_entity_name"])
            known = arm["mean"] is not None
            row = {"metric": metric["name"], "arm": arm["served_entity_name"], "units": arm["units"]}
            row |= {"mean": f"{arm['mean']:.4g}" if known else "", "verdict": each["verdict"] if each else "control"}
            if each and each["lower"] is not None:
                row["difference"] = f"{each['difference']:+.3g} ({each['lower']:+.3g} to {each['upper']:+.3g})"
            rows.append(row)
    if rows:
        context.obj.print_rows(rows, _METRICS, as_json=False, empty="")
        print()
    state = "RUNNING: " if found["state"] == "RUNNING" else ""  # what has ended says so itself
    print(f"{found['name']} on {found['endpoint']}: {state}{found['verdict']['text']}")
