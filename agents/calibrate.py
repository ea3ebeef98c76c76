"""Fit the reader's models: `python -m agents.calibrate ROWS.jsonl [--out agents/answerability.json]`.

A row is a question with the passages found for it: `{"question", "passages": [Passage as a dict], "answers": [text],
"answerable": bool, "group", "set"}`. Rows of a group (an article, a document) are fitted or held out together. Needs
scikit-learn; what it writes is applied with plain arithmetic by `agents.support`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.extract import EMBEDDED, SHORTLIST, select, write
from agents.support import (
    CANDIDATE_FEATURES,
    QUESTION_FEATURES,
    Candidate,
    Logistic,
    Question,
    candidates,
    parts_of,
    probability,
    question_values,
)
from retrieval.types import Passage

HELD_OUT = 0.3
"""Share of groups that nothing is fitted on."""
CONTEXT_SHARE = 0.4


@dataclass(slots=True)
class Row:
    question: Question
    passages: list[Passage]
    answers: list[str]
    answerable: bool
    group: str
    set: str
    found: list[Candidate]

    @property
    def held_out(self) -> bool:
        return int(hashlib.sha256(self.group.encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT


def normal(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles."""
    text = "".join(c if c not in string.punctuation else " " for c in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def contains(text: str, answers: Sequence[str]) -> bool:
    padded = f" {normal(text)} "
    return any(f" {normal(answer)} " in padded for answer in answers)


def holds(row: Row, candidate: Candidate) -> bool:
    """Is an answer in what would be quoted for the candidate?"""
    parts = parts_of(row.question, candidate.passage, candidate.place)
    return contains(candidate.passage.text[parts[0].start : parts[-1].end], row.answers)


def token_f1(text: str, answers: Sequence[str]) -> float:
    best, have = 0.0, Counter(normal(text).split())
    for answer in answers:
        want = Counter(normal(answer).split())
        same = sum((have & want).values())
        if same:
            best = max(best, 2 * same / (sum(have.values()) + sum(want.values())))
    return best


def load(rows: Iterable[Mapping[str, Any]], embed: Any) -> list[Row]:
    """Rows with their short-listed sentences, embedded."""
    loaded = []
    for row in rows:
        passages = [Passage.from_dict(p) for p in row["passages"]]
        question = Question.of(row["question"])
        found = candidates(question, passages)[:SHORTLIST]
        loaded.append(
            Row(question, passages, list(row["answers"]), bool(row["answerable"]), str(row["group"]), str(row["set"]), found)
        )
    texts = sorted({r.question.text for r in loaded} | {c.text[:EMBEDDED] for r in loaded for c in r.found}, key=len)
    vectors: dict[str, np.ndarray] = {}
    for start in range(0, len(texts), 512):
        batch = texts[start : start + 512]
        vectors.update(zip(batch, embed(batch), strict=True))
    for row in loaded:
        for candidate in row.found:
            candidate.values["cos"] = float(vectors[row.question.text] @ vectors[candidate.text[:EMBEDDED]])
    return [row for row in loaded if row.found]


def logistic(names: Sequence[str], values: Sequence[Mapping[str, float]], labels: Sequence[bool], weights: Any, c: float) -> Any:
    """A logistic regression over standardised features, folded back to plain coefficients."""
    from sklearn.linear_model import LogisticRegression

    x = np.array([[v[name] for name in names] for v in values])
    mean, scale = x.mean(0), x.std(0) + 1e-9
    model = LogisticRegression(C=c, max_iter=2_000).fit((x - mean) / scale, labels, sample_weight=weights)
    coefficients = model.coef_[0] / scale
    intercept = float(model.intercept_[0] - coefficients @ mean)
    return {
        "intercept": round(intercept, 5),
        "coefficients": {n: round(float(v), 5) for n, v in zip(names, coefficients, strict=True)},
    }


def rank(rows: Sequence[Row], ranker: Logistic) -> None:
    for row in rows:
        for candidate in row.found:
            candidate.score = ranker(candidate.values)
        row.found.sort(key=lambda c: -c.score)


def fit(rows: Sequence[Row]) -> dict[str, Any]:
    """Both models and the threshold, from the rows that are not held out."""
    train = [row for row in rows if not row.held_out]
    asked = [r for r in train if r.answerable and r.answers]
    pairs = [(c.values, holds(r, c)) for r in asked for c in r.found]
    # Each collection has the same say, whatever its size.
    questions = Counter(r.set for r in asked)
    weights = [len(asked) / len(questions) / questions[r.set] for r in asked for _ in r.found]
    ranker = logistic(CANDIDATE_FEATURES, [v for v, _ in pairs], [y for _, y in pairs], weights, 0.3)
    # No collection has follow-up questions: words of the question before count by choice, less than those of the question.
    ranker["coefficients"]["context"] = round(CONTEXT_SHARE * abs(ranker["coefficients"]["near"]), 5)
    rank(rows, Logistic(ranker))
    values = [question_values(r.question, r.passages, r.found) for r in train]
    # Each collection counts the same within its label, and both labels count the same.
    size = Counter((r.set, r.answerable) for r in train)
    kinds = Counter(answerable for _, answerable in size)
    weights = [len(train) / (2 * kinds[r.answerable] * size[r.set, r.answerable]) for r in train]
    answerable = logistic(QUESTION_FEATURES, values, [r.answerable for r in train], weights, 0.5)
    model = Logistic(answerable)
    scores = np.array([probability(model(v)) for v in values])
    labels = np.array([r.answerable for r in train])
    w = np.array(weights)
    grid = np.arange(0.2, 0.81, 0.01)
    balance = [(w * ((scores >= t) == labels)).sum() / w.sum() for t in grid]
    return {"ranker": ranker, "answerable": answerable, "threshold": round(float(grid[int(np.argmax(balance))]), 3)}


def report(rows: Sequence[Row], spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the models reach on rows: abstention by collection, and the answers' quality where they should answer."""
    rank(rows, Logistic(spec["ranker"]))
    model, by_set, held, quality = Logistic(spec["answerable"]), defaultdict(list), defaultdict(list), []
    hit = wrong = missed = 0
    for row in rows:
        answers = probability(model(question_values(row.question, row.passages, row.found))) >= spec["threshold"]
        by_set[f"{row.set} {'answerable' if row.answerable else 'unanswerable'}"].append(answers == row.answerable)
        hit += not answers and not row.answerable
        wrong += not answers and row.answerable
        missed += answers and not row.answerable
        if row.answerable and row.answers:
            text = write(select(row.question, row.found, 3))[0] if answers else ""
            plain = re.sub(r"\s*\[\d+\]", "", text)
            top = holds(row, row.found[0])
            held[row.set].append(contains(plain, row.answers))
            quality.append((contains(plain, row.answers), token_f1(plain, row.answers), top, answers, len(plain)))
    kept = np.array(quality, float).reshape(-1, 5)
    answered = kept[kept[:, 3] > 0]
    return {
        "rows": len(rows),
        "right_decision": {name: round(float(np.mean(v)), 3) for name, v in sorted(by_set.items())},
        "abstention_precision": round(hit / max(1, hit + wrong), 3),
        "abstention_recall": round(hit / max(1, hit + missed), 3),
        "containment_all": round(float(kept[:, 0].mean()), 3),
        "containment": {name: round(float(np.mean(v)), 3) for name, v in sorted(held.items())},
        "containment_answered": round(float(answered[:, 0].mean()), 3),
        "token_f1_answered": round(float(answered[:, 1].mean()), 3),
        "top_sentence_right": round(float(kept[:, 2].mean()), 3),
        "answer_characters": round(float(answered[:, 4].mean())),
    }


def encoder(spec: str, cache: Path) -> Any:
    """`embed` of the encoder that `module:Class` names."""
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name).load(cache).embed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m agents.calibrate", description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--out", type=Path, default=None, help="where the models are written; without it only the report is")
    parser.add_argument("--encoder", default="retrieval.embed:Encoder")
    parser.add_argument("--cache", type=Path, default=Path(".smalti/models"))
    options = parser.parse_args(arguments)
    with options.rows.open(encoding="utf-8") as file:
        rows = load((json.loads(line) for line in file), encoder(options.encoder, options.cache))
    spec = fit(rows)
    held = report([row for row in rows if row.held_out], spec)
    print(json.dumps(held, indent=1))
    if options.out:
        options.out.write_text(json.dumps({**spec, "held_out": held}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
