from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.data import Prediction, Row
from evals.scorers import METRICS, contains, normalize, score, shared_lead, source_rank, token_f1


def test_normalize_is_squads() -> None:
    assert normalize("The  Cat, an 'A-Team'\n(and) a dog.") == "cat ateam and dog"
    assert normalize("It is 308 [1], not 12 [23].") == "it is 308 not 12"


@pytest.mark.parametrize(
    ("text", "fact", "found"),
    [
        ("They gave up just 308 points.", "308", True),
        ("They gave up 1308 points.", "308", False),
        ("Run `smalti keys revoke NAME`!", "smalti keys revoke", True),
        ("Answer to the\n  Question", "answer to question", True),
        ("TCP/IP", "IP", True),
        ("Send an email", "e-mail", True),
        ("use => here", "=>", True),
        ("use -> here", "=>", False),
        ("東京は日本の首都です", "首都", True),
        ("“Naïve” STRASSE", "naïve straße", True),
        ("", "x", False),
    ],
)
def test_contains(text: str, fact: str, found: bool) -> None:
    assert contains(text, fact) is found


def test_token_f1_by_hand() -> None:
    # 3 tokens against 2, 2 in common: precision 2/3, recall 1, F1 = 4/5
    assert token_f1("the big red house", "red house") == pytest.approx(0.8)
    assert token_f1("a a cat cat", "cat") == pytest.approx(2 / 3)
    assert token_f1("dog", "cat") == 0
    assert token_f1("", "the") == 1
    assert token_f1("", "cat") == 0


@given(st.text(), st.text())
def test_f1_is_a_share_symmetric_and_one_for_itself(a: str, b: str) -> None:
    assert 0 <= token_f1(a, b) <= 1
    assert token_f1(a, b) == token_f1(b, a)
    assert token_f1(a, a) == 1


@pytest.mark.parametrize(
    ("expected", "sources", "rank"),
    [
        (["guide/keys.md"], ["index.md", "guide/keys.md"], 2),
        (["keys.md"], ["docs/guide/keys.md"], 1),
        (["keys.md"], ["docs/monkeys.md"], None),
        (["Guide/Keys.MD"], ["./guide\\keys.md"], 1),
        (["/guide/keys.md"], ["file:///srv/guide/keys.md"], 1),
        (["a.md", "b.md"], ["c.md", "b.md", "a.md"], 2),
        (["docs/guide/keys.md"], ["keys.md"], None),
        (["a.md"], [], None),
    ],
)
def test_source_rank(expected: list[str], sources: list[str], rank: int | None) -> None:
    assert source_rank(expected, sources) == rank


def test_a_lead_that_the_index_lacks_is_found_once_for_all_rows() -> None:
    expected = ["docs/index.md", "docs/guide/index.md"]
    lead = shared_lead(expected, ["index.md", "guide/keys.md"])
    assert lead == 1
    assert source_rank(["docs/index.md"], ["guide/index.md", "index.md"], lead) == 1  # a suffix is enough
    assert source_rank(["docs/guide/index.md"], ["index.md"], lead) is None
    # Nothing is dropped where the paths fit as they are, so the index's root file is no hit for guide/index.md.
    assert shared_lead(["guide/index.md"], ["index.md", "guide/index.md"]) == 0
    assert shared_lead(["/home/me/docs/a.md"], ["a.md"]) == 3
    assert shared_lead(["docs/a.md"], ["b.md"]) == 0
    assert shared_lead([], ["b.md"]) == 0


FULL = Row("1", "q", ("red house", "308"), ("a.md",))


def test_every_score_of_an_answered_row() -> None:
    scores = score(FULL, Prediction("A red house, 308.", ("x.md", "y.md", "z.md", "a.md"), latency_ms=12.5))
    assert {name: value for name, value in scores.items() if value is not None} == {
        "hit@1": 0, "hit@3": 0, "hit@5": 1, "hit@10": 1, "mrr": 0.25, "recall@5": 1, "recall@10": 1,
        "ndcg@10": pytest.approx(0.43068, abs=1e-5), "contains": 1, "fact_recall": 1, "f1": 1, "abstention_accuracy": 1,
        "latency_ms": 12.5,
    }  # fmt: skip


def test_half_the_facts() -> None:
    scores = score(FULL, Prediction("308 points", ()))
    assert (scores["contains"], scores["fact_recall"], scores["mrr"], scores["hit@10"]) == (0, 0.5, 0, 0)
    assert scores["f1"] == pytest.approx(2 / 5)


def test_an_abstention_on_an_answerable_row_is_a_miss_whatever_its_words() -> None:
    scores = score(FULL, Prediction("Not in these documents: red house 308", ("a.md",), abstained=True))
    assert (scores["contains"], scores["fact_recall"], scores["f1"], scores["hit@1"]) == (0, 0, 0, 1)
    assert (scores["abstention_accuracy"], scores["abstention_precision"], scores["abstention_recall"]) == (0, 0, None)


def test_an_unanswerable_row_counts_for_abstention_only() -> None:
    row = Row("1", "q", (), ("a.md",), unanswerable=True)
    right, wrong = score(row, Prediction("no", ("a.md",), abstained=True)), score(row, Prediction("yes", ("a.md",)))
    assert {key for key, value in right.items() if value is not None} == {
        "abstention_accuracy", "abstention_precision", "abstention_recall",
    }  # fmt: skip
    assert (right["abstention_accuracy"], right["abstention_precision"], right["abstention_recall"]) == (1, 1, 1)
    assert (wrong["abstention_accuracy"], wrong["abstention_precision"], wrong["abstention_recall"]) == (0, None, 0)


def test_an_error_scores_nothing() -> None:
    assert set(score(FULL, Prediction(error="boom", latency_ms=3)).values()) == {None}


def test_every_metric_has_a_score() -> None:
    assert {metric.key for metric in METRICS.values()} == set(score(FULL, Prediction()))


def test_importing_evals_is_cheap() -> None:
    code = (
        "import sys, evals; print(sorted({m.split('.')[0] for m in sys.modules} & {'mlflow','scipy','numpy','rich','asyncio'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=".")
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_had() -> None:
    import evals

    assert all(getattr(evals, name) is not None for name in evals.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = evals.nope  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("row", "prediction", "score_of", "value"),
    [
        ({"expected_answer": "The Red House"}, {"text": "red house. [1]"}, "exact_match", 1),
        ({"expected_answer": "The Red House"}, {"text": "a red house, I think"}, "exact_match", 0),
        ({"expected_pattern": r"\d{4}"}, {"text": "in 1998"}, "pattern", 1),
        ({"expected_pattern": r"^\d{4}$"}, {"text": "in 1998"}, "pattern", 0),
        ({"expected_schema": {"type": "object", "required": ["a"]}}, {"text": '{"a": 1}'}, "json_schema", 1),
        ({"expected_schema": {"type": "object", "required": ["a"]}}, {"text": 'Here:\n```json\n{"a": 1}\n```'}, "json_schema", 1),
        ({"expected_schema": {"type": "object", "required": ["a"]}}, {"text": '{"b": 1}'}, "json_schema", 0),
        ({"expected_schema": {"type": "object"}}, {"text": "not JSON"}, "json_schema", 0),
        ({"expected_tools": ("add", "find")}, {"tools": ("find", "add")}, "tool_calls", 1),
        ({"expected_tools": ("add", "find")}, {"tools": ("find", "add", "add")}, "tool_calls", 0),
        ({"expected_tools": ()}, {}, "tool_calls", 1),
        ({"expected_tools": ()}, {"tools": ("rm",)}, "tool_calls", 0),
        ({"expected_route": "documents"}, {"route": "decline"}, "route", 0),
        ({"expected_sources": ("a", "b", "c")}, {"sources": ("a", "x", "b")}, "recall@5", 2 / 3),
        ({"expected_sources": ("a", "b", "c")}, {"sources": ("b", "a", "c")}, "ndcg@10", 1),
        ({"expected_sources": ("a",)}, {"sources": ("x", "a")}, "ndcg@10", 0.63093),
        ({"target": "joy"}, {"label": "joy", "probabilities": {"joy": 0.5}}, "accuracy", 1),
        ({"target": "joy"}, {"label": "joy", "probabilities": {"joy": 0.5}}, "log_loss", 0.693147),
        ({"target": "2"}, {"label": 2.0}, "accuracy", 1),
        ({"target": 2.0}, {"label": 5}, "absolute_error", 3),
        ({"target": 2.0}, {"label": 5}, "squared_error", 9),
        ({"target": 2.0}, {"text": "about two"}, "squared_error", None),
        ({}, {"abstained": True}, "abstention_accuracy", None),
        ({"unanswerable": False}, {"abstained": True}, "abstention_accuracy", 0),
        ({}, {"tokens": 12, "cost": 0.5}, "cost", 0.5),
    ],
)
def test_what_is_expected(row: dict, prediction: dict, score_of: str, value: float | None) -> None:
    assert score(Row("1", "q", **row), Prediction(**prediction))[score_of] == (
        None if value is None else pytest.approx(value, abs=1e-5)
    )
