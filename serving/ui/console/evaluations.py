"""Evaluations: what was measured of an endpoint, with its intervals; its course; what went wrong; two held against each other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from nicegui import ui

from governance.call import CallError
from serving.ui.console.charts import COLOURS, line, plot
from serving.ui.console.forms import choice, form, progress
from serving.ui.console.frame import ConsolePage
from serving.ui.console.tables import table
from serving.ui.console.words import stamp
from serving.ui.parts import Latest, tag
from serving.ui.report import report_url

AT = "/api/2.0/smalti/evaluations"
EVERY = 3.0
"""Seconds between looks at an evaluation that is going on."""
RECORDED = 600
"""Seconds after its beginning in which an evaluation may yet be recorded in MLflow."""
_SHOWN = ("hit@5", "contains", "fact_recall", "accuracy", "abstention_recall", "latency_p95_ms")
_KINDS = {
    "error": "no answer", "invented": "answered, should have declined", "refused": "declined, should have answered",
    "source": "right source not found", "facts": "facts missing", "scorer": "a scorer failed",
}  # fmt: skip

Row = Mapping[str, Any]


class EvaluationsPage(ConsolePage):
    section = "Evaluations"
    chosen: str | None = None

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._comparisons = Latest()

    def open(self, asked: Mapping[str, str]) -> None:
        self.chosen = asked.get("id")

    async def load(self) -> tuple[Sequence[Row], Row | None] | None:
        if not (await self.who()).admin:
            return None
        found = (await self.api("GET", AT))["evaluations"]
        return found, await self.api("GET", f"{AT}/{quote(self.chosen, safe='')}") if self.chosen else None

    def draw(self, loaded: tuple[Sequence[Row], Row | None] | None) -> None:
        if loaded is None:
            self.head("Evaluations", "Evaluations are for administrators.")
            return
        found, chosen = loaded
        self.head("Evaluations", "How good the answers are, on questions whose answers are known.")
        if chosen is not None:
            self.watched = tag("section", "detail tile", aria_label="Evaluation")
            self._listed, self._seen = found, _state(chosen)
            with self.watched:
                self._one(chosen)
            if self._going(chosen):
                ui.timer(EVERY, self._look, immediate=False)
        measured = [name for name in _SHOWN if any(each["metrics"].get(name) is not None for each in found)]
        columns = [
            ("id", "Evaluation"), ("started", "Begun (UTC)"), ("endpoint", "Endpoint"), ("dataset", "Dataset"),
            ("rows", "Rows"), *((name, name) for name in measured), ("gate", "Gate"),
        ]  # fmt: skip
        rows = [
            {
                "id": each["id"], "started": stamp(each["started"]), "endpoint": each["endpoint"],
                "dataset": PurePath(each["dataset"]).name, "gate": each["gate"],
                "rows": each["rows"] if each["rows"] == each["expected_rows"] else f"{each['rows']} of {each['expected_rows']}",
                **{name: _rounded(each["metrics"].get(name)) for name in measured},
            }
            for each in found
        ]  # fmt: skip
        empty = "No evaluation yet. Make one: smalti eval assistant --data DATASET.jsonl"
        table("All evaluations", empty, columns, rows, key="id", opens="id", on_open=self._open)

    async def _open(self, evaluation: str) -> None:
        self.chosen = evaluation
        self.go(id=evaluation)
        await self.show()
        self.client.run_javascript("smalti.to('.detail')")

    async def _look(self) -> None:
        """Draw an evaluation that is going on again where it went on; once it is recorded, the whole page."""
        try:
            await self.who()
            each = await self.api("GET", f"{AT}/{quote(self.chosen or '', safe='')}")
        except CallError as error:
            self.tell(error)
            return
        if self.watched.is_deleted or each["id"] != self.chosen or _state(each) == self._seen:
            return
        if not self._going(each):
            await self.show()
            return
        self._seen = _state(each)
        self.watched.clear()
        with self.watched:
            self._one(each)

    def _going(self, each: Row) -> bool:
        """Whether more may come: rows, and after them what MLflow calls it."""
        begun = datetime.fromisoformat(each["started"]).timestamp()
        unrecorded = self.data.mlflow and not each["run_id"] and time.time() - begun < RECORDED
        return each["rows"] < each["expected_rows"] or unrecorded

    def _one(self, each: Row) -> None:
        alike = [other for other in self._listed if other["sha256"] == each["sha256"]]
        with tag("div", "section-head"):
            tag("h2", text=f"{each['endpoint']} on {PurePath(each['dataset']).name}")
            with tag("div", "head-tools"):
                tag("a", "link", "Report", href=report_url(each["id"]), target="_blank", rel="noopener")
                if each["run_id"] and self.data.mlflow:
                    tag("a", "link", "Run in MLflow", href=mlflow_url(each), target="_blank", rel="noopener")
        if each["rows"] < each["expected_rows"]:
            told = f"{each['rows']:,} of {each['expected_rows']:,} rows: it is going on, or was ended early."
            progress(told, round(100 * each["rows"] / each["expected_rows"]))
        self._facts(each)
        if each["conditions"]:
            tag("h3", text=f"Gate: {each['gate']}")
            with tag("ul", "lines"):
                for condition in each["conditions"]:
                    with tag("li"):
                        tag("span", text=f"{condition['name']}: {condition['reason']}")
                        tag("span", f"status {'good' if condition['outcome'] == 'passed' else 'warn'}", condition["outcome"])
        self._metrics(each["metrics"])
        self._compared(each, [other for other in alike if other["id"] != each["id"]])
        self._courses([other for other in alike if other["endpoint"] == each["endpoint"]])
        self._failures(each)

    def _courses(self, alike: Sequence[Row]) -> None:
        """How an endpoint did on one dataset, from evaluation to evaluation."""
        drawn = courses(alike)
        if not drawn:
            return
        with tag("div", "charts"):
            for title, lines in drawn.items():
                series = [
                    line(name, points, colour, symbol="circle")
                    for colour, (name, points) in zip(COLOURS * 2, lines.items(), strict=False)
                ]
                said = "; ".join(
                    f"{name} {_number(points[0][1])}, now {_number(points[-1][1])}" for name, points in lines.items()
                )
                plot(title, f"{title}, by evaluation: {said}", series, x="time")

    def _failures(self, each: Row) -> None:
        columns = [
            ("kind", "What went wrong"), ("question", "Question"), ("expected", "Expected"), ("got", "Got"), ("id", "Row"),
        ]  # fmt: skip
        rows = [{**failure, "kind": _KINDS.get(failure["kind"], failure["kind"])} for failure in each["failures"]]
        wrong = f"{each['wrong']:,} rows went wrong" if each["wrong"] != 1 else "1 row went wrong"
        title = wrong if len(rows) == each["wrong"] else f"The worst {len(rows)} of {wrong}"
        empty, shown = "Every row went right.", ("question", "expected", "got")
        table(title if rows else "What went wrong", empty, columns, rows, key="id", wraps=shown)

    def _facts(self, each: Row) -> None:
        errors = [f"{name} failed on {count} rows" for name, count in each["scorer_errors"].items()]
        facts = {
            "Begun (UTC)": stamp(each["started"]), "Rows": f"{each['rows']:,} of {each['expected_rows']:,}",
            "Without an answer": f"{each['errors']:,} rows, which are in no metric" if each["errors"] else "",
            "Scorers": "; ".join(errors), "Dataset": f"{each['dataset']} (sha256 {each['sha256'][:12]})",
        }  # fmt: skip
        with tag("dl", "facts"):
            for name, value in facts.items():
                if value:
                    tag("dt", text=name)
                    tag("dd", text=value)

    def _metrics(self, metrics: Sequence[Row]) -> None:
        with tag("div", "scores", role="list", aria_label="Metrics"):
            for metric in metrics:
                with tag("div", "score", role="listitem", title=metric["words"]):
                    tag("span", "score-name", metric["name"])
                    tag("strong", text=_number(metric["value"]))
                    if metric["bounded"] and metric["low"] is not None:
                        low, high = max(0.0, metric["low"]), min(1.0, metric["high"])
                        with tag("span", "range", aria_hidden="true"):
                            tag("span", "range-fill").style(f"left: {low:.1%}; width: {max(0.005, high - low):.1%}")
                            tag("span", "range-mark").style(f"left: {metric['value']:.1%}")
                    tag("small", text=f"{_interval(metric)}n = {metric['n']:,}")

    def _compared(self, each: Row, others: Sequence[Row]) -> None:
        tag("h3", text="Compared with an earlier one")
        if not others:
            tag("p", "hint", text="There is no other evaluation on this very dataset to hold it against.")
            return

        async def compare(given: Mapping[str, str]) -> None:
            latest = self._comparisons.begin()
            try:
                await self.who()
                found = await self.api("GET", f"{AT}/compare", params={"before": given.get("before", ""), "after": each["id"]})
            except CallError as error:
                if latest():
                    self.tell(error)
                return
            if latest() and not result.is_deleted:
                result.clear()
                with result:
                    self._comparison(found)

        with form("Compare", compare, "decide"):
            options = [(other["id"], f"{other['endpoint']}, {stamp(other['started'])}") for other in others]
            choice("Before", "before", options, options[0][0])
        result = tag("div", aria_live="polite")

    def _comparison(self, found: Row) -> None:
        worse = any(item["verdict"] == "worse" for item in found["differences"])
        better = any(item["verdict"] == "better" for item in found["differences"])
        tag("p", f"verdict {'bad' if worse else 'good' if better else 'calm'}", found["sentence"])
        columns = [
            ("score", "Score"), ("before", "Before"), ("after", "After"), ("difference", "Difference"),
            ("interval", "95 % interval"), ("n", "Rows"), ("p", "p (Holm)"), ("verdict", "Verdict"),
        ]  # fmt: skip
        rows = [
            {
                **{key: item[key] for key in ("score", "n", "verdict")},
                **{key: _rounded(item[key]) for key in ("before", "after", "difference")},
                "p": "" if item["p"] is None else f"{item['p']:.2g}",
                "interval": "" if item["low"] is None else f"{item['low']:+.3g} to {item['high']:+.3g}",
            }
            for item in found["differences"]
        ]  # fmt: skip
        table("Differences", "No score is in both.", columns, rows, key="score")


def _state(each: Row) -> tuple[Any, ...]:
    return each["rows"], each["run_id"], each["gate"]


def courses(alike: Sequence[Row]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """By chart and metric: (milliseconds, value) of evaluations of one endpoint on one dataset, from the second on."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for each in sorted(alike, key=lambda other: other["started"]):
        at = int(datetime.fromisoformat(each["started"]).timestamp() * 1000)
        for name in _SHOWN:
            if (value := each["metrics"].get(name)) is not None:
                chart = "Latency p95 over time, ms" if name == "latency_p95_ms" else "Scores over time"
                found.setdefault(chart, {}).setdefault(name, []).append((at, round(value, 4)))
    kept = {chart: {name: points for name, points in lines.items() if len(points) > 1} for chart, lines in found.items()}
    return {chart: lines for chart, lines in kept.items() if lines}


def mlflow_url(each: Row) -> str:
    """Where MLflow shows an evaluation's run."""
    experiment, run = quote(each["experiment_id"], safe=""), quote(each["run_id"], safe="")
    return f"/mlflow/#/experiments/{experiment}/evaluation-runs?selectedRunUuid={run}"


def _interval(metric: Row) -> str:
    low, high = metric["low"], metric["high"]
    if low is None and high is None:
        return ""
    ends = "at least" if high is None else "at most" if low is None else ""
    return f"{ends} {_number(high if low is None else low)}, " if ends else f"{_number(low)} – {_number(high)}, "


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}")


def _number(value: float | None) -> str:
    return (
        "–" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
    )
