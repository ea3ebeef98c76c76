"""Experiments: arms and their units, each metric's difference over time, the verdict in words; promote or roll back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from governance.call import bad_request
from serving.ui.console.charts import COLOURS, band, plot
from serving.ui.console.endpoints import shares_of
from serving.ui.console.forms import choice, field, form
from serving.ui.console.frame import ConsolePage
from serving.ui.console.tables import table
from serving.ui.console.words import stamp
from serving.ui.parts import tag

AT = "/api/2.0/smalti/experiments"
CHARTED = 6
"""Metrics whose course is drawn at once; the others fold open."""
_DECISIONS = {
    "winner": "good", "guardrail": "bad", "sample_ratio_mismatch": "bad", "undecided": "calm", "no_traffic": "calm",
}  # fmt: skip
_GOING_ON = ("RUNNING", "DECIDED")
_WORDS = {"primary": "decides", "guardrail": "guardrail", "secondary": "also watched"}

Row = Mapping[str, Any]


class ExperimentsPage(ConsolePage):
    section = "Experiments"
    chosen: str | None = None

    def open(self, asked: Mapping[str, str]) -> None:
        self.chosen = asked.get("name")

    async def load(self) -> tuple[Sequence[Row], Row | None, Mapping[str, Sequence[str]]]:
        who = await self.who()
        served = {
            str(each["name"]): list(shares_of(each))
            for each in await self.data.endpoints(who)
            if each.get("permission_level") == "CAN_MANAGE"
        }
        found = (await self.api("GET", AT))["experiments"]
        one = await self.api("GET", f"{AT}/{quote(self.chosen, safe='')}") if self.chosen else None
        return found, one, {name: arms for name, arms in served.items() if len(arms) > 1}

    def draw(self, loaded: tuple[Sequence[Row], Row | None, Mapping[str, Sequence[str]]]) -> None:
        found, chosen, served = loaded
        self.head(
            "Experiments",
            "Which arm real traffic shows to be better. They may be watched all day: the intervals hold at every look.",
        )
        if chosen is not None:
            self._one(chosen)
        columns = [
            ("name", "Experiment"), ("state", "State"), ("endpoint", "Endpoint"), ("metric", "Decided by"), ("units", "Units"),
            ("verdict", "Verdict"), ("started", "Begun (UTC)"), ("creator", "By"),
        ]  # fmt: skip
        rows = [
            {
                **{key: each[key] for key in ("name", "state", "endpoint", "metric", "creator")},
                "units": sum(arm.get("units", 0) for arm in each["arms"]), "verdict": each["verdict"]["text"],
                "started": stamp(each["started"]),
            }
            for each in found
        ]  # fmt: skip
        empty = "No experiment on an endpoint you manage. One takes an endpoint that serves two entities or more."
        table("All experiments", empty, columns, rows, key="name", opens="name", on_open=self._open)
        if served:
            self._new(served)

    def _new(self, served: Mapping[str, Sequence[str]]) -> None:
        async def create(given: Mapping[str, str]) -> None:
            names = served.get(given.get("endpoint", ""), ())
            asked: dict[str, Any] = {key: given.get(key, "").strip() for key in ("name", "endpoint", "mode", "sticky", "metric")}
            if given.get("shares") == "even" and names:
                even, rest = divmod(100, len(names))
                asked["arms"] = [
                    {"served_entity_name": name, "traffic_percentage": even + (i < rest)} for i, name in enumerate(names)
                ]
            await self.who()
            self.chosen = (await self.api("POST", AT, json=asked))["name"]
            self.go(name=self.chosen)

        with tag("section", "panel-section", id="new-experiment", aria_label="Begin an experiment"):
            with tag("div", "section-head"):
                tag("h2", text="Begin an experiment")
                tag("p", text="It ends by itself where an arm makes more errors.")
            with form("Begin", self.doing(create, "The experiment has begun."), "wide-form"):
                field("Name", "name", required=True, maxlength=63)
                choice("Endpoint", "endpoint", [(name, f"{name}: {', '.join(arms)}") for name, arms in served.items()])
                choice("Shares", "shares", [("even", "even"), ("now", "as traffic is split now")])
                choice("What is dealt", "sticky", [("thread", "conversations"), ("user", "users"), ("request", "requests")])
                field("Decided by", "metric", value="user_feedback", required=True, maxlength=64, list="metrics")
                choice("Mode", "mode", [(each, each) for each in ("fixed", "shadow", "track-and-stop")])
            with tag("datalist", id="metrics"):
                for name in ("user_feedback", "latency_ms", "ttfb_ms", "cost", "error", "turns", "retry", "abandoned"):
                    tag("option", value=name)

    async def _open(self, name: str) -> None:
        self.chosen = name
        self.go(name=name)
        await self.show()
        self.client.run_javascript("smalti.to('.detail')")

    def _one(self, each: Row) -> None:
        with tag("section", "detail tile", aria_label="Experiment"):
            with tag("div", "section-head"):
                tag("h2", text=each["name"])
                with tag("div", "head-tools"):
                    tag("span", f"status {'good' if each['state'] in ('RUNNING', 'PROMOTED') else 'warn'}", each["state"])
            verdict = each["verdict"]
            tag("p", f"verdict {_DECISIONS.get(verdict['decision'], 'calm')}", verdict["text"], role="status")
            self._facts(each)
            with tag("div", "decide-row"):
                self._decide(each)
            self._arms(each)
            self._courses(each)
            self._metrics(each)

    def _facts(self, each: Row) -> None:
        span = f"{stamp(each['started'])} – {stamp(each['ended']) or 'now'} (UTC)"
        facts = {
            "Endpoint": each["endpoint"], "Mode": f"{each['mode']}, a {each['sticky']} is one unit",
            "Compared with": each["control"], "Ran": f"{span}, begun by {each['creator']}",
            "Left out": f"{each['crossed_calls']:,} calls that a fallback touched" if each["crossed_calls"] else "",
        }  # fmt: skip
        with tag("dl", "facts"):
            for name, value in facts.items():
                if not value:
                    continue
                tag("dt", text=name)
                with tag("dd"):
                    if name == "Endpoint":
                        tag("a", "link", value, href=f"/console/endpoints?name={quote(value, safe='')}")
                    else:
                        tag("span", text=value)

    def _decide(self, each: Row) -> None:
        at, name = f"{AT}/{quote(each['name'], safe='')}", each["name"]
        if each["state"] in _GOING_ON:
            names = [arm["served_entity_name"] for arm in each["arms"]]
            best = each["verdict"]["winner"] or names[-1]

            async def promote(given: Mapping[str, str]) -> None:
                if (arm := given.get("arm")) not in names:
                    raise bad_request("Choose an arm.", "served_entity_name")
                await self.who()
                await self.api("POST", f"{at}/promote", json={"served_entity_name": arm})

            with form("Promote", self.doing(promote, f"{name} is decided."), "decide"):
                choice("Give all traffic to", "arm", [(arm, arm) for arm in names], best)
        if each["state"] in (*_GOING_ON, "PROMOTED"):

            async def rollback() -> None:
                await self.who()
                await self.api("POST", f"{at}/rollback", json={})

            question = f"Give the traffic of {each['endpoint']} back to whom it went before?"
            with tag("div", "decide-more"):
                self.confirmed("Roll back", question, rollback, f"{name} is rolled back.", danger=True)

    def _arms(self, each: Row) -> None:
        columns = [
            ("served_entity_name", "Arm"), ("traffic_percentage", "Share %"), ("units", "Units"), ("expected", "Units expected"),
            ("calls", "Calls"), ("fallbacks", "Fallbacks"),
        ]  # fmt: skip
        ratio = each["sample_ratio"] or {}
        expected = ratio.get("expected") or [None] * len(each["arms"])
        rows = [
            {"units": 0, "calls": 0, "fallbacks": 0, **arm, "expected": share}
            for arm, share in zip(each["arms"], expected, strict=False)
        ]
        table("Arms", "", columns, rows, key="served_entity_name")
        tag("p", f"hint ratio {'' if ratio.get('ok', True) else 'bad'}", ratio_said(ratio))

    def _courses(self, each: Row) -> None:
        drawn = [metric for metric in each["metrics"] if course(each, metric["name"])]
        with tag("div", "charts"):
            for metric in drawn[:CHARTED]:
                self._course(each, metric)
        if drawn[CHARTED:]:
            with tag("details", "how"):
                tag("summary", text=f"{len(drawn) - CHARTED} more metrics over time")
                with tag("div", "charts"):
                    for metric in drawn[CHARTED:]:
                        self._course(each, metric)

    def _course(self, each: Row, metric: Row) -> None:
        name, series = metric["name"], []
        for colour, (arm, points) in zip(COLOURS * 9, course(each, name).items(), strict=False):
            series += band(arm, points, colour)
        last = "; ".join(f"{d['served_entity_name']}: {between(d)}" for d in metric["differences"])
        label = f"Difference to {each['control']} in {name} over time, with its confidence sequence. Now {last}"
        plot(f"{name}, difference to {each['control']}", label, series, x="time", zero=True)

    def _metrics(self, each: Row) -> None:
        columns = [
            ("metric", "Metric"), ("role", "Role"), ("goal", "Better is"), ("arm", "Arm"), ("units", "Units"), ("mean", "Mean"),
            ("difference", f"Difference to {each['control']}"), ("relative", "Relative"), ("told", "Shown to be"),
        ]  # fmt: skip
        table("Metrics", "No call was counted yet.", columns, metric_rows(each), key="id", size=15)


def ratio_said(ratio: Row) -> str:
    """The sample-ratio check in words."""
    if ratio.get("p_value") is None:
        return "Shares move in this mode, so how many units each arm should have is not checked."
    if ratio["ok"]:
        return f"Sample-ratio check passed: units fell on the arms as they were to be dealt (p = {ratio['p_value']:.2g})."
    return (
        f"Sample-ratio check failed (p = {ratio['p_value']:.2g}): something loses or adds units of one arm. "
        "Do not believe the differences until it is found."
    )


def between(told: Row) -> str:
    """A difference with its interval."""
    if told["difference"] is None:
        return "no values yet"
    if told["lower"] is None or told["upper"] is None:
        return f"{told['difference']:+.3g}, too few units"
    return f"{told['difference']:+.3g} ({told['lower']:+.3g} to {told['upper']:+.3g})"


def course(each: Row, metric: str) -> dict[str, list[tuple[int, float | None, float | None, float | None]]]:
    """By arm: (milliseconds, difference, lower, upper) at each look that knew the metric's difference."""
    found: dict[str, list[tuple[int, float | None, float | None, float | None]]] = {}
    deciding = each["metrics"][0]["name"] if each["metrics"] else ""
    for look in each["history"]:
        at = int(datetime.fromisoformat(look["time"]).timestamp() * 1000)
        told = look["differences"] if metric == deciding else (look.get("others") or {}).get(metric, ())
        for one in told:
            if one["difference"] is not None:
                rounded = (None if one[key] is None else round(one[key], 6) for key in ("difference", "lower", "upper"))
                found.setdefault(one["served_entity_name"], []).append((at, *rounded))  # pyright: ignore[reportArgumentType]
    return found


def metric_rows(each: Row) -> list[dict[str, Any]]:
    """A row for each metric and arm, the deciding metric first."""
    rows = []
    for metric in each["metrics"]:
        compared = {told["served_entity_name"]: told for told in metric["differences"]}
        for arm in metric["arms"]:
            name, told = arm["served_entity_name"], compared.get(arm["served_entity_name"])
            relative = told["relative"] if told else None
            rows.append(
                {
                    "id": f"{metric['name']} {name}", "metric": metric["name"], "arm": name, "units": arm["units"],
                    "role": _WORDS.get(metric["role"], metric["role"]),
                    "goal": "more" if metric["goal"] == "increase" else "less",
                    "mean": None if arm["mean"] is None else float(f"{arm['mean']:.4g}"),
                    "difference": between(told) if told else "", "told": told["verdict"] if told else "compared with",
                    "relative": "" if relative is None else f"{relative:+.1%}",
                }
            )  # fmt: skip
    return rows
