from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evals.classical import classes, drawings, overall
from evals.data import Prediction, Row, RowResult
from evals.html import page
from evals.journal import Evaluation, score_all
from evals.report import failures
from evals.stats import summarize


def evaluation(*results: RowResult) -> Evaluation:
    scored, _ = score_all(results)
    return Evaluation(
        "assistant", "data/rows.jsonl", "ab" * 32, len(scored), tuple(scored), summarize(r.scores for r in scored), Path("j")
    )


PASSAGE = {"source": "a.md", "text": "The <b>passage</b>.", "score": 0.5}
ROWS = [
    RowResult(Row("right", "Right?", ("yes",), ("a.md",)), Prediction("yes", ("a.md",), latency_ms=5, passages=(PASSAGE,))),
    RowResult(
        Row("facts", "Which <script>alert(1)</script>?", ("yes",), ("a.md",)),
        Prediction("no", ("a.md",), latency_ms=9, trace_id="tr-1", passages=(PASSAGE,)),
        judged={"tone": {"value": "yes", "rationale": "kind"}, "broken": {"error": "ZeroDivisionError"}},
    ),
    RowResult(Row("error", "Down?"), Prediction(error="503 & more")),
    RowResult(Row("rude", "Rude?"), Prediction("Go away", latency_ms=5), judged={"tone": {"value": "no", "rationale": "harsh"}}),
    RowResult(Row("mood", "Mood?"), Prediction("Hm", latency_ms=5), judged={"mood": {"value": "grey"}, "length": {"value": 31}}),
]


def test_failures_come_first_with_all_that_is_known_of_them() -> None:
    text = page(evaluation(*ROWS), "http://127.0.0.1/t/{trace_id}")
    order = [text.index(name) for name in ("3 rows went wrong", "503 &amp; more", "tr-1", "Rude?", "2 rows went right", "Right?")]
    assert order == sorted(order)
    for part in (
        "facts</span> yes",
        "The &lt;b&gt;passage",
        "kind",
        "broken failed on 1 rows: ZeroDivisionError",
        "mood: grey 1",
        "href='http://127.0.0.1/t/tr-1'",
        "<svg",
    ):
        assert part in text
    assert "<script" not in text
    assert not re.search(r"(src|href)=['\"]?https?://(?!127)", re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL))
    assert ">length</text>" not in text, "a length is no share, so it is not drawn among them"
    HTMLParser().feed(text)


def test_a_classifier_has_its_confusion_matrix_and_calibration() -> None:
    said = [("a", "a", 0.9), ("a", "a", 0.8), ("a", "b", 0.6), ("b", "b", 0.7), ("b", "c", 0.5)]
    results = [
        RowResult(Row(str(i), "q", inputs={"x": i}, target=true), Prediction(label, label=label, probabilities={label: p}))
        for i, (true, label, p) in enumerate(said)
    ]
    found = classes(results)
    assert found is not None
    assert (found.labels, found.confusion) == (("a", "b", "c"), ((2, 1, 0), (0, 1, 1), (0, 0, 0)))
    assert found.by_label["a"] == {"precision": 1, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8), "n": 3}
    assert found.macro_f1 == pytest.approx((0.8 + 0.5) / 2)
    assert [point["accuracy"] for point in found.calibration] == [0, 0, 1, 1, 1]
    text = page(evaluation(*results))
    assert "Confusion matrix" in text
    assert "Calibration" in text
    assert [failure.kind for failure in failures(evaluation(*results))] == ["accuracy", "accuracy"]
    whole = overall(evaluation(*results).results)
    assert whole["macro_f1"].value == found.macro_f1
    low, high = whole["macro_f1"].low, whole["macro_f1"].high
    assert low is not None
    assert high is not None
    assert 0 <= low < found.macro_f1 < high <= 1
    assert set(drawings(results)) == {"confusion.svg", "calibration.svg"}
    assert classes([replace(results[0], row=Row("1", "q"))]) is None


def test_a_regression_has_its_error_and_the_variance_it_explains() -> None:
    truth = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    results = [
        RowResult(Row(str(i), "q", inputs={"x": i}, target=y), Prediction(str(y + 0.5), label=y + 0.5))
        for i, y in enumerate(truth)
    ]
    found = overall(evaluation(*results).results)
    assert found["rmse"].value == pytest.approx(0.5)
    assert found["r2"].value == pytest.approx(1 - 0.25 / (35 / 12))
    assert found["r2"].n == 6
    alike = [replace(each, row=replace(each.row, target=1.0)) for each in results]
    assert "r2" not in overall(evaluation(*alike).results), "nothing varies, so nothing is explained"
    assert "macro_f1" not in found
    assert overall(evaluation(RowResult(Row("1", "q"), Prediction("a"))).results) == {}
