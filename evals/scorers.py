"""Deterministic scorers: pure functions of a row and its prediction, and the same as MLflow scorers.

Every metric is the mean of a per-row score over the rows it applies to (latencies: percentiles); a row it does not apply to
scores None and is counted as left out. Rows whose prediction failed score None everywhere.

| metric | a row's score | applies to |
|---|---|---|
| `hit@k` | an expected source is among the first k retrieved | answerable rows with `expected_sources` |
| `mrr` | 1 / rank of the first expected source, 0 if none | the same |
| `recall@k` | share of the expected sources among the first k | the same |
| `ndcg@10` | discounted gain of the expected sources over the best possible | the same |
| `contains` | the answer contains every expected fact | answerable rows with `expected_facts` |
| `fact_recall` | share of the expected facts it contains | the same |
| `f1` | token F1 of the answer against the facts, as SQuAD defines it | the same |
| `exact_match` | the answer is the expected one, as SQuAD compares | rows with `expected_answer` |
| `pattern` | the expected pattern is found in the answer | rows with `expected_pattern` |
| `json_schema` | the answer is JSON that meets the schema | rows with `expected_schema` |
| `tool_calls` | exactly the expected tools were called, in any order | rows with `expected_tools` |
| `route` | the router took the expected route | rows with `expected_route` |
| `accuracy` | the label is the target | rows with a string as `target` |
| `absolute_error`, `squared_error` | of the number predicted | rows with a number as `target` |
| `log_loss` | minus the logarithm of the target's probability | rows with a string, where probabilities are given |
| `macro_precision`, `macro_recall`, `macro_f1` | none: they are of all rows at once | as `accuracy` |
| `rmse`, `r2` | none: they are of all rows at once | as `squared_error` |
| `abstention_accuracy` | abstained exactly if unanswerable | all rows with a question of which something is expected |
| `abstention_precision` | the row is unanswerable | those where the endpoint abstained |
| `abstention_recall` | the endpoint abstained | unanswerable rows |
| `latency_p50_ms`, `latency_p95_ms` | milliseconds from question to full answer | all rows |
| `tokens`, `cost` | tokens used, US dollars | rows whose answer says so |

An answer that abstains contains no fact, whatever its words. SQuAD: https://arxiv.org/abs/1606.05250, its evaluation script
lower-cases, drops punctuation and the articles a, an, the, and splits at whitespace; here punctuation is Unicode's, and citation
markers such as [1] are dropped. nDCG has the gain 1 for each expected source and the discount log2(rank + 1) (Järvelin and
Kekäläinen 2002).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mlflow.genai.scorers import Scorer

    from evals.data import Prediction, Row

KS = (1, 3, 5, 10)
RECALL_KS = (5, 10)
_CITATION = re.compile(r"\s*\[\d+\]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's `name`, its `key` among the per-row scores, how it is summed up, and what it says in words.

    `kind`: `share` (of rows, 0 to 1), `mean` (of numbers from 0 to 1), `amount` (the mean of numbers that are better when lower)
    or `latency` (the percentile `quantile`, milliseconds).
    """

    name: str
    key: str
    kind: Literal["share", "mean", "amount", "latency"]
    words: str
    quantile: float = 0.0
    whole: bool = False
    """Of all rows at once: no row has a score of its own (`evals.classical.overall`)."""

    @property
    def bounded(self) -> bool:
        """Whether a row's score lies between 0 and 1."""
        return self.kind in ("share", "mean")

    @property
    def lower_is_better(self) -> bool:
        return self.kind in ("latency", "amount")


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *(Metric(f"hit@{k}", f"hit@{k}", "share", f"an expected source is among the first {k}") for k in KS),
        Metric("mrr", "mrr", "mean", "1 / rank of the first expected source"),
        *(Metric(f"recall@{k}", f"recall@{k}", "mean", f"share of expected sources among the first {k}") for k in RECALL_KS),
        Metric("ndcg@10", "ndcg@10", "mean", "how early the expected sources stand"),
        Metric("contains", "contains", "share", "the answer contains every expected fact"),
        Metric("fact_recall", "fact_recall", "mean", "share of expected facts in the answer"),
        Metric("f1", "f1", "mean", "token F1 of answer and expected facts"),
        Metric("exact_match", "exact_match", "share", "the answer is the expected one"),
        Metric("pattern", "pattern", "share", "the expected pattern is in the answer"),
        Metric("json_schema", "json_schema", "share", "the answer is JSON that meets its schema"),
        Metric("tool_calls", "tool_calls", "share", "exactly the expected tools were called"),
        Metric("route", "route", "share", "the router took the expected route"),
        Metric("accuracy", "accuracy", "share", "the label is the target"),
        Metric("absolute_error", "absolute_error", "amount", "mean absolute error"),
        Metric("squared_error", "squared_error", "amount", "mean squared error"),
        Metric("log_loss", "log_loss", "amount", "mean log loss of the labels"),
        Metric("macro_precision", "macro_precision", "mean", "precision, the mean over labels", whole=True),
        Metric("macro_recall", "macro_recall", "mean", "recall, the mean over labels", whole=True),
        Metric("macro_f1", "macro_f1", "mean", "F1, the mean over labels", whole=True),
        Metric("rmse", "rmse", "amount", "root of the mean squared error", whole=True),
        Metric("r2", "r2", "mean", "share of the target's variance explained", whole=True),
        Metric("abstention_accuracy", "abstention_accuracy", "share", "abstained exactly where it should"),
        Metric("abstention_precision", "abstention_precision", "share", "abstained, and rightly"),
        Metric("abstention_recall", "abstention_recall", "share", "unanswerable, and abstained"),
        Metric("latency_p50_ms", "latency_ms", "latency", "median latency, ms", 0.5),
        Metric("latency_p95_ms", "latency_ms", "latency", "95th percentile of latency, ms", 0.95),
        Metric("tokens", "tokens", "amount", "mean tokens used"),
        Metric("cost", "cost", "amount", "mean cost, US dollars"),
    )
}


def metrics_of(keys: Iterable[str] = ()) -> dict[str, Metric]:
    """The metrics, and one (a mean) for each further key among the rows' scores, which a further scorer put there."""
    known = {metric.key for metric in METRICS.values()}
    return METRICS | {key: described(key) for key in sorted(set(keys) - known)}


def described(name: str) -> Metric:
    """The metric of a name; one that no table knows is the mean of what its scorer says."""
    latency = Metric(name, name, "latency", "latency, ms", 0.5)
    return METRICS.get(name) or (latency if name == "latency_ms" else Metric(name, name, "mean", "as its scorer says"))


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
    return min(source_ranks(expected, sources, lead), default=None)


def source_ranks(expected: Iterable[str], sources: Sequence[str], lead: int = 0) -> list[int]:
    """The ranks of those expected sources that were retrieved; see `source_rank`."""
    wanted = {_parts(path)[lead:] for path in expected} - {()}
    retrieved = list(map(_parts, sources))
    ranks = (
        next((rank for rank, source in enumerate(retrieved, start=1) if source[-len(parts) :] == parts), None) for parts in wanted
    )
    return sorted(rank for rank in ranks if rank)


def ndcg(ranks: Sequence[int], relevant: int, k: int = 10) -> float:
    """Normalised discounted cumulative gain at k of `relevant` items, of which those retrieved have these ranks."""
    gain = sum(1 / math.log2(rank + 1) for rank in ranks if rank <= k)
    return gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(relevant, k) + 1))


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
        ranks, wanted = source_ranks(row.expected_sources, prediction.sources, lead), len(set(row.expected_sources))
        first = ranks[0] if ranks else math.inf
        scores.update({f"hit@{k}": float(first <= k) for k in KS})
        scores.update({f"recall@{k}": sum(rank <= k for rank in ranks) / wanted for k in RECALL_KS})
        scores["mrr"], scores["ndcg@10"] = 1 / first, ndcg(ranks, wanted)
    if row.expected_facts and not row.unanswerable:
        found = [not abstained and contains(prediction.text, fact) for fact in row.expected_facts]
        scores["contains"] = float(all(found))
        scores["fact_recall"] = sum(found) / len(found)
        scores["f1"] = 0.0 if abstained else token_f1(prediction.text, " ".join(row.expected_facts))
    scores |= _expected(row, prediction)
    if row.inputs is not None:
        return scores
    if row.unanswerable is None and not row.expectations():
        return scores  # nobody says whether it has an answer
    scores["abstention_accuracy"] = float(abstained == bool(row.unanswerable))
    if abstained:
        scores["abstention_precision"] = float(bool(row.unanswerable))
    if row.unanswerable:
        scores["abstention_recall"] = float(abstained)
    return scores


def _expected(row: Row, prediction: Prediction) -> dict[str, float | None]:
    """Scores of what applies to answers of every kind."""
    scores: dict[str, float | None] = {
        "latency_ms": prediction.latency_ms, "tokens": prediction.tokens, "cost": prediction.cost
    }  # fmt: skip
    text = _CITATION.sub("", prediction.text).strip()
    if row.expected_answer:
        scores["exact_match"] = float(normalize(text) == normalize(row.expected_answer))
    if row.expected_pattern:
        scores["pattern"] = float(re.search(row.expected_pattern, prediction.text) is not None)
    if row.expected_schema is not None:
        scores["json_schema"] = float(meets(prediction.text, row.expected_schema))
    if row.expected_tools is not None:
        scores["tool_calls"] = float(Counter(prediction.tools or ()) == Counter(row.expected_tools))
    if row.expected_route:
        scores["route"] = float(prediction.route == row.expected_route)
    if isinstance(row.target, str):
        scores["accuracy"] = float(prediction.said == row.target)
        if prediction.probabilities:
            scores["log_loss"] = -math.log(max(prediction.probabilities.get(row.target, 0.0), 1e-15))
    elif row.target is not None:
        with suppress(ValueError):  # no number, so no distance to it either
            error = float(prediction.text if prediction.label is None else prediction.label) - row.target
            scores |= {"absolute_error": abs(error), "squared_error": error**2}
    return scores


def meets(text: str, schema: Mapping[str, Any]) -> bool:
    """Whether the text, or the one fenced block in it, is JSON that meets a JSON schema."""
    from jsonschema.validators import validator_for

    fenced = re.fullmatch(r".*?```\w*\n(.*?)```.*", text, re.DOTALL)
    try:
        value = json.loads(fenced.group(1) if fenced else text)
    except (ValueError, RecursionError):
        return False
    return validator_for(schema)(schema).is_valid(value)


def mlflow_name(key: str) -> str:
    """A score's name in MLflow, which allows no `@`: `hit@5` is `hit_at_5`."""
    return key.replace("@", "_at_")


def mlflow_scorers(lead: int = 0) -> list[Scorer]:
    """The per-row scores as scorers for `mlflow.genai.evaluate`.

    They read `outputs` (a `Prediction` as a dict) and `expectations` (`expected_facts`, `expected_sources`, `unanswerable`).
    Shares are booleans, others numbers; a score that does not apply to a row yields no assessment.
    """
    from mlflow.genai import scorer

    kinds = {metric.key: metric.kind for metric in METRICS.values() if not metric.whole}

    def make(key: str) -> Scorer:
        def run(outputs: Any, expectations: Any = None) -> bool | float | None:
            row, prediction = _from_mlflow(outputs, expectations or {})
            value = score(row, prediction, lead)[key]
            return bool(value) if value is not None and kinds[key] == "share" else value

        return scorer(run, name=mlflow_name(key), aggregations=["mean"])

    return [make(key) for key in kinds]


def _from_mlflow(outputs: Any, expectations: Mapping[str, Any]) -> tuple[Row, Prediction]:
    from evals.data import Prediction, Row

    fields = {key: expectations[key] for key in Row.__dataclass_fields__ if expectations.get(key) is not None}
    for key in ("expected_facts", "expected_sources", "expected_tools"):
        if key in fields:
            fields[key] = tuple(fields[key])
    row = Row(**{**fields, "id": "", "question": ""})
    return row, Prediction(text=outputs) if isinstance(outputs, str) else Prediction.from_dict(outputs)


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
