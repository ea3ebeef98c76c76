"""An evaluation as one self-contained HTML file: what failed first, every row with what it was asked, expected and given."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape

from evals import plots
from evals.classical import classes
from evals.data import RowResult
from evals.journal import Evaluation
from evals.report import failure_of, failures, scorer_error, words_said
from evals.scorers import described

MAX_ROWS = 2_000
"""Rows that went right are listed up to here; those that failed always are."""

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bad: #c62828; --good: #2e7d32; --dim: #777; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid var(--line); } 
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.dim { color: var(--dim); } .bad { color: var(--bad); } .good { color: var(--good); }
details { border-top: 1px solid var(--line); padding: .5rem 0; } summary { cursor: pointer; }
summary b { display: inline-block; min-width: 4.5rem; } 
dl { display: grid; grid-template-columns: 7rem 1fr; gap: .3rem .8rem; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; background: #fff;
         border-radius: 6px; padding: .4rem; max-width: 100%; }
figure svg { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .85rem; }
blockquote { margin: .2rem 0; padding-left: .7rem; border-left: 3px solid var(--line); }
"""


def page(evaluation: Evaluation, trace_url: str | None = None) -> str:
    """The file's text. `trace_url` is where a trace is seen, with `{trace_id}` in it. It needs no network and runs no script."""
    failed = {failure.id for failure in failures(evaluation, None)}
    by_id = {result.row.id: result for result in evaluation.results}
    order = [by_id[failure.id] for failure in failures(evaluation, None)]
    passed = [result for result in evaluation.results if result.row.id not in failed]
    title = f"{escape(evaluation.endpoint)} on {escape(evaluation.dataset.rsplit('/', 1)[-1])}"
    shown = f", the first {MAX_ROWS} shown" if len(passed) > MAX_ROWS else ""
    parts = [
        f"<!doctype html>\n<html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1><p class='dim'>{_head(evaluation)}</p>",
        *_metrics(evaluation),
        *_figures(evaluation),
        f"<h2 class='{'bad' if order else 'good'}'>{len(order)} rows went wrong</h2>",
        *(_row(result, trace_url, number < 3) for number, result in enumerate(order)),
        f"<h2>{len(passed)} rows went right{shown}</h2>",
        *(_row(result, trace_url, False) for result in passed[:MAX_ROWS]),
        "</html>\n",
    ]
    return "\n".join(parts)


def _head(evaluation: Evaluation) -> str:
    said = [f"{evaluation.rows} of {evaluation.expected_rows} rows"]
    if evaluation.errors:
        said.append(f"<span class='bad'>{len(evaluation.errors)} infrastructure errors, which are in no metric</span>")
    for name, count in evaluation.scorer_errors.items():
        said.append(f"<span class='bad'>{escape(name)} failed on {count} rows: {escape(scorer_error(evaluation, name))}</span>")
    said.append(f"dataset sha256 {evaluation.sha256[:12]}")
    if evaluation.run_id:
        said.append(f"MLflow run {escape(evaluation.run_id)}")
    return " · ".join(said)


def _metrics(evaluation: Evaluation) -> Iterator[str]:
    yield "<table><tr><th>metric<th class='n'>value<th class='n'>95 % interval<th class='n'>n<th></tr>"
    for name, estimate in evaluation.estimates.items():
        if estimate.n:
            cells = (f"{estimate.value:.4g}", estimate.interval("{:.4g}".format), str(estimate.n))
            numbers = "".join(f"<td class='n'>{cell}" for cell in cells)
            yield f"<tr><td>{escape(name)}{numbers}<td class='dim'>{escape(described(name).words)}</tr>"
    yield "</table>"
    for name, counts in words_said(evaluation).items():
        yield f"<p>{escape(name)}: {escape(', '.join(f'{said} {count}' for said, count in counts.items()))}</p>"


def _figures(evaluation: Evaluation) -> Iterator[str]:
    bounded = [
        (name, item.value, item.low, item.high, "")
        for name, item in evaluation.estimates.items()
        if described(name).bounded and item.value is not None and item.low is not None and item.high is not None
        if item.low >= 0 and item.high <= 1
    ]
    drawings = [("Values with 95 % intervals", plots.intervals(bounded, zero=False))]
    latencies = [value for result in evaluation.results if (value := result.scores.get("latency_ms")) is not None]
    drawings.append(("Latency", plots.histogram(latencies, "milliseconds")))
    found = classes(evaluation.results)
    if found is not None:
        drawings.append(("Confusion matrix", plots.confusion(found.labels, found.confusion)))
        drawings.append(("Calibration", plots.calibration(found.calibration)))
    for caption, drawing in drawings:
        if drawing:
            yield f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _row(result: RowResult, trace_url: str | None, opened: bool) -> str:
    row, prediction, failure = result.row, result.prediction, failure_of(result)
    kind = f"<b class='bad'>{failure.kind}</b>" if failure else "<b class='good'>right</b>"
    answer = prediction.error if prediction.error is not None else prediction.text or str(prediction.label or "")
    items = [("question", escape(row.question)), ("expected", _expected(result)), ("answer", escape(answer))]
    if prediction.abstained:
        items.append(("", "it said that its documents hold no answer"))
    items.append(("passages", _passages(result)))
    scores = {name: value for name, value in result.scores.items() if value is not None}
    items.append(("scores", escape(", ".join(f"{name} {value:.4g}" for name, value in scores.items()))))
    for name, said in result.judged.items():
        text = said.get("error") or f"{said.get('value')}" + (f": {said['rationale']}" if said.get("rationale") else "")
        items.append((escape(name), f"<span class='bad'>{escape(text)}</span>" if said.get("error") else escape(text)))
    items.append(("trace", _trace(result, trace_url)))
    body = "".join(f"<dt>{name}<dd>{text}" for name, text in items if text)
    return f"<details{' open' if opened else ''}><summary>{kind} {escape(row.question[:200])}</summary><dl>{body}</dl></details>"


def _expected(result: RowResult) -> str:
    expected = result.row.expectations()
    if expected.pop("unanswerable", False):
        return "to abstain"
    lines = []
    for key, value in expected.items():
        text = " · ".join(map(str, value)) if isinstance(value, list | tuple) else value
        text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        lines.append(f"<span class='dim'>{key.removeprefix('expected_')}</span> {escape(text)}")
    return "\n".join(lines)


def _passages(result: RowResult) -> str:
    parts = []
    for number, passage in enumerate(
        result.prediction.passages or [{"source": source} for source in result.prediction.sources], 1
    ):
        score = passage.get("score")
        head = f"{number}. {escape(str(passage.get('source') or ''))}" + (f" ({score:.3f})" if isinstance(score, float) else "")
        text = str(passage.get("text") or passage.get("quote") or "")
        parts.append(head + (f"<blockquote>{escape(text[:1_500])}</blockquote>" if text else ""))
    return "\n".join(parts)


def _trace(result: RowResult, trace_url: str | None) -> str:
    trace_id = result.prediction.trace_id
    if not trace_id:
        return escape(result.prediction.request_id or "")
    if not trace_url:
        return escape(trace_id)
    return f"<a href='{escape(trace_url.format(trace_id=trace_id))}'>{escape(trace_id)}</a>"
