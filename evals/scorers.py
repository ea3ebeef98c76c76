"""Deterministic scorers: pure functions of a row and its prediction, and the same as MLflow scorers.

Every metric is the mean of a per-row score over the rows it applies to (latencies: percentiles); a row it does not apply to
scores None and is counted as left out. Rows whose prediction failed score None everywhere.

| metric | a row's score | applies to |
|---|---|---|
| `hit@k` | an expected source is among the first k retrieved | answerable rows with `expected_sources` |
| `mrr` | 1 / rank of the first expected source, 0 if none | the same |
| `contains` | the answer contains every expected fact | answerable rows with `expected_facts` |
| `fact_recall` | share of the expected facts it contains | the same |
| `f1` | token F1 of the answer against the facts, as SQuAD defines it | the same |
| `abstention_accuracy` | abstained exactly if unanswerable | all rows |
| `abstention_precision` | the row is unanswerable | rows where the endpoint abstained |
| `abstention_recall` | the endpoint abstained | unanswerable rows |
| `latency_p50_ms`, `latency_p95_ms` | milliseconds from question to full answer | all rows |

An answer that abstains contains no fact, whatever its words. SQuAD: https://arxiv.org/abs/1606.05250, its evaluation script
lower-cases, drops punctuation and the articles a, an, the, and splits at whitespace; here punctuation is Unicode's, and citation
markers such as [1] are dropped.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mlflow.genai.scorers import Scorer

    from evals.data import Prediction, Row

KS = (1, 3, 5, 10)
_CITATION = re.compile(r"\s*\[\d+\]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's `name`, its `key` among the per-row scores, how it is summed up, and what it says in words.

    `kind`: `share` (of rows, 0 to 1), `mean` (of numbers from 0 to 1) or `latency` (the percentile `quantile`, milliseconds).
    """

    name: str
    key: str
    kind: Literal["share", "mean", "latency"]
    words: str
    quantile: float = 0.0

    @property
    def lower_is_better(self) -> bool:
        return self.kind == "latency"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(Metric(f"hit@{k}", f"hit@{k}", "share", f"an expected source is among the first {k}") for k in KS),
        Metric("mrr", "mrr", "mean", "1 / rank of the first expected source"),
        Metric("contains", "contains", "share", "the answer contains every expected fact"),
        Metric("fact_recall", "fact_recall", "mean", "share of expected facts in the answer"),
        Metric("f1", "f1", "mean", "token F1 of answer and expected facts"),
        Metric("abstention_accuracy", "abstention_accuracy", "share", "abstained exactly where it should"),
        Metric("abstention_precision", "abstention_precision", "share", "abstained, and rightly"),
        Metric("abstention_recall", "abstention_recall", "share", "unanswerable, and abstained"),
        Metric("latency_p50_ms", "latency_ms", "latency", "median latency, ms", 0.5),
        Metric("latency_p95_ms", "latency_ms", "latency", "95th percentile of latency, ms", 0.95),
    )
}


def normalize(text: str, punctuation: str = "") -> str:
    """Lower case, without citation markers and articles, single spaces; each punctuation character becomes `punctuation`."""
    text = unicodedata.normalize("NFKC", _CITATION.sub("", text)).casefold()
    text = "".join(punctuation if unicodedata.category(c)[0] == "P" or c in "$+<=>^`|~" else c for c in text)
    return " ".join(_ARTICLES.sub(" ", text).split())


def contains(text: str, fact: str) -> bool:
    """Whether `fact` occurs in `text` after normalisation, as whole words (scripts written without spaces: anywhere).

    Punctuation is dropped, or taken for a space: `e-mail` is found in "email", `IP` in "TCP/IP".
    """
    if not normalize(fact):  # nothing but punctuation and articles, such as "=>"
        return fact.strip().casefold() in text.casefold()
    return any(_occurs(normalize(fact, mark), normalize(text, mark)) for mark in ("", " "))


def _occurs(wanted: str, text: str) -> bool:
    before = "" if _unspaced(wanted[0]) else r"(?<!\w)"
    after = "" if _unspaced(wanted[-1]) else r"(?!\w)"
    return re.search(before + re.escape(wanted) + after, text) is not None


def token_f1(text: str, reference: str) -> float:
    """F1 of the normalised tokens of `text` and `reference`, counted with multiplicity (SQuAD 1.1)."""
    answer, expected = normalize(text).split(), normalize(reference).split()
    if not answer or not expected:
        return float(answer == expected)
    same = sum((Counter(answer) & Counter(expected)).values())
    return 2 * same / (len(answer) + len(expected))


def source_rank(expected: Iterable[str], sources: Sequence[str], lead: int = 0) -> int | None:
    """1-based rank of the first retrieved source that is an expected one; None if none is.

    A retrieved path matches when it equals an expected path or ends with it at a folder boundary (`docs/guide/keys.md` for
    `guide/keys.md`). Letter case, `\\`, a leading `./` or `/` and `file://` make no difference. `lead` is how many leading
    folders of the expected paths the retrieved ones lack (see `shared_lead`).
    """
    wanted = [_parts(path)[lead:] for path in expected]
    for rank, source in enumerate(map(_parts, sources), start=1):
        if any(parts and source[-len(parts) :] == parts for parts in wanted):
            return rank
    return None


def shared_lead(expected: Iterable[str], retrieved: Iterable[str]) -> int:
    """How many leading folders, shared by all expected paths, the retrieved paths lack.

    A dataset may name files from the repository (`docs/keys.md`) while the index counts from its folder (`keys.md`). The answer
    is one number for the whole run: the smallest with which any expected source was retrieved at all, else 0.
    """
    paths = [_parts(path) for path in set(expected)]
    if not paths:
        return 0
    found = {source[-length:] for source in map(_parts, set(retrieved)) for length in range(1, len(source) + 1)}
    shared = 0
    while all(len(path) > shared + 1 and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return next((lead for lead in range(shared + 1) if any(path[lead:] in found for path in paths)), 0)


def score(row: Row, prediction: Prediction, lead: int = 0) -> dict[str, float | None]:
    """All scores of one row by key (see the module's table); `lead` as in `source_rank`."""
    scores: dict[str, float | None] = dict.fromkeys(metric.key for metric in METRICS.values())
    if prediction.error is not None:
        return scores
    abstained = prediction.abstained
    if row.expected_sources and not row.unanswerable:
        rank = source_rank(row.expected_sources, prediction.sources, lead)
        scores.update({f"hit@{k}": float(rank is not None and rank <= k) for k in KS})
        scores["mrr"] = 1 / rank if rank else 0.0
    if row.expected_facts and not row.unanswerable:
        found = [not abstained and contains(prediction.text, fact) for fact in row.expected_facts]
        scores["contains"] = float(all(found))
        scores["fact_recall"] = sum(found) / len(found)
        scores["f1"] = 0.0 if abstained else token_f1(prediction.text, " ".join(row.expected_facts))
    scores["abstention_accuracy"] = float(abstained == row.unanswerable)
    if abstained:
        scores["abstention_precision"] = float(row.unanswerable)
    if row.unanswerable:
        scores["abstention_recall"] = float(abstained)
    scores["latency_ms"] = prediction.latency_ms
    return scores


def mlflow_name(key: str) -> str:
    """A score's name in MLflow, which allows no `@`: `hit@5` is `hit_at_5`."""
    return key.replace("@", "_at_")


def mlflow_scorers(lead: int = 0) -> list[Scorer]:
    """The per-row scores as scorers for `mlflow.genai.evaluate`.

    They read `outputs` (a `Prediction` as a dict) and `expectations` (`expected_facts`, `expected_sources`, `unanswerable`).
    Shares are booleans, others numbers; a score that does not apply to a row yields no assessment.
    """
    from mlflow.genai import scorer

    kinds = {metric.key: metric.kind for metric in METRICS.values()}

    def make(key: str) -> Scorer:
        def run(outputs: Any, expectations: Any) -> bool | float | None:
            row, prediction = _from_mlflow(outputs, expectations or {})
            value = score(row, prediction, lead)[key]
            return bool(value) if value is not None and kinds[key] == "share" else value

        return scorer(run, name=mlflow_name(key), aggregations=["mean"])

    return [make(key) for key in kinds]


def _from_mlflow(outputs: Any, expectations: Mapping[str, Any]) -> tuple[Row, Prediction]:
    from evals.data import Prediction, Row

    row = Row(
        id="",
        question="",
        expected_facts=tuple(expectations.get("expected_facts") or ()),
        expected_sources=tuple(expectations.get("expected_sources") or ()),
        unanswerable=bool(expectations.get("unanswerable")),
    )
    if isinstance(outputs, str):
        return row, Prediction(text=outputs)
    return row, Prediction(**{key: outputs[key] for key in Prediction.__dataclass_fields__ if key in outputs})


def _parts(path: str) -> tuple[str, ...]:
    path = unicodedata.normalize("NFC", path).removeprefix("file://").replace("\\", "/").casefold()
    return tuple(part for part in path.split("/") if part not in ("", "."))


def _unspaced(character: str) -> bool:
    """Thai, Lao, Khmer, Chinese, Japanese, Korean: words are not set apart by spaces, or carry endings."""
    return (
        "\u0e00" <= character <= "\u0eff"
        or "\u1780" <= character <= "\u17ff"
        or "\u2e80" <= character <= "\ud7ff"
        or ("\uf900" <= character <= "\ufaff" or character >= "\U00020000")
    )
