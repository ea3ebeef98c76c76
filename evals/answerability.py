"""Answerability without an LLM: the probability that passages hold the answer to a question, by a support vector machine.

The machine in `answerability.json` and `.npz` is made by `python -m evals.train_answerability FOLDER --out
evals/answerability.json`; what it reaches on questions it has not seen is written there, under `validation`. Passages are taken
as a set: in which order they come says nothing here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from evals.cache import digest
from evals.support import Embed, Vectors, Word, probability, sentences, words

PASSAGES, SENTENCES, LONGEST = 10, 20, 700
"""Passages that are looked at, sentences of them that are embedded, characters of a passage that are."""
VECTORS = ("question", "gap")

_MONTHS = frozenset(
    [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
        "century",
    ]
)
_KINDS = (
    ("time", r"\bwhen\b|\b(?:what|which) (?:\w+ )?(?:year|date|day|month|century|decade)"),
    (
        "number",
        r"\bhow (?:many|much|long|old|far|often|tall|high|large|big|fast|deep|wide|heavy)\b|\bpopulation\b|\bpercent"
        r"|\bwhat (?:\w+ )?(?:number|amount|age|size|distance)",
    ),
    ("name", r"\b(?:who|whom|whose)\b"),
    ("place", r"\bwhere\b|\b(?:what|which) (?:\w+ )?(?:country|city|state|town|place|river|continent)"),
    ("how", r"\bwhy\b|\bhow (?:did|do|does|is|are|was|were|can|to)\b"),
)
_SUPERLATIVES = frozenset(["most", "largest", "biggest", "first", "best", "longest", "oldest", "highest"])
_NOW = frozenset(["today", "current", "now"])


class Rarity:
    """How much a word tells, from how many of `total` passages hold its stem; what is not in the table is in few of them."""

    def __init__(self, frequency: Mapping[str, int], total: int) -> None:
        self._frequency, self._total = frequency, total

    def __call__(self, stem: str) -> float:
        return math.log((self._total + 1) / (self._frequency.get(stem, 2) + 0.5))

    def share(self, wanted: frozenset[str], found: frozenset[str]) -> float:
        """The share of what `wanted` tells that is in `found`."""
        whole = sum(map(self, wanted))
        return sum(map(self, wanted & found)) / whole if whole else 0.0


class Machine:
    """A support vector machine with a Gaussian kernel over scaled features, calibrated by Platt's logistic regression.

    Parameters
    ----------
    spec: `names` of the features, `gamma` of the kernel, `intercept` of the machine, `slope` and `shift` of the calibration, and
    the `threshold` from which passages count as holding an answer.
    arrays: `centre` and `scale` of the features; of each of `VECTORS` the `axes` on which it is seen, and its place on them
    `offset`; `support`, the examples that are kept, and what each says, `dual`.
    """

    def __init__(self, spec: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        import numpy as np

        self.names, self.threshold = tuple(spec["names"]), float(spec["threshold"])
        self._numbers = [float(spec[name]) for name in ("gamma", "intercept", "slope", "shift")]
        self._arrays = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
        held = [np.asarray(arrays[name]).tobytes().hex() for name in sorted(arrays)]
        self.fingerprint = digest([self.names, self.threshold, self._numbers, held])

    def __call__(self, values: Mapping[str, float], *embedded: Any) -> float:
        """The probability, answerable and not counted as equally likely beforehand; `embedded`: as `features` gives them."""
        import numpy as np

        held, (gamma, intercept, slope, shift) = self._arrays, self._numbers
        embedded = embedded or tuple(np.asarray(values[name]) for name in VECTORS)
        seen = [
            embedding @ held[f"{name}_axes"] - held[f"{name}_offset"] for name, embedding in zip(VECTORS, embedded, strict=True)
        ]
        plain = (np.array([values[name] for name in self.names]) - held["centre"]) / held["scale"]
        away = ((held["support"] - np.concatenate([plain, *seen])) ** 2).sum(axis=1)
        found = slope * (float(held["dual"] @ np.exp(-gamma * away)) + intercept) + shift
        return probability(found)


@cache
def model() -> tuple[Machine, Rarity]:
    """The model that Smalti comes with, read once: of features, and the rarity of words."""
    import numpy as np

    spec = json.loads(resources.files("evals").joinpath("answerability.json").read_text(encoding="utf-8"))
    with resources.files("evals").joinpath("answerability.npz").open("rb") as file, np.load(file) as arrays:
        return Machine(spec, dict(arrays)), Rarity(spec["frequency"], spec["passages"])


class Answerability:
    """A scorer: the probability that the passages an answer came with hold the answer to the question.

    `embed`: the encoder; the model that Smalti comes with was made with all-MiniLM-L6-v2. A row without passages that carry their
    text yields nothing.
    """

    name = "answerability"

    def __init__(self, embed: Embed) -> None:
        self.model, self._rarity = model()
        self.fingerprint, self._vectors = self.model.fingerprint, Vectors(embed)

    def score(self, question: str, passages: Sequence[str]) -> float:
        """The probability, 0 to 1. `passages`: each with its title before it, `Title: text`, where it has one."""
        return self.model(*features(question, passages, self._vectors, self._rarity))

    def run(self, *, inputs: Any = None, outputs: Any = None, expectations: Any = None, trace: Any = None) -> float | None:
        question = inputs.get("question") if isinstance(inputs, Mapping) else None
        if not isinstance(outputs, Mapping) or not isinstance(question, str) or not question.strip():
            return None
        told = [(str(p.get("title") or ""), str(p.get("text") or p.get("quote") or "")) for p in outputs.get("passages") or ()]
        texts = [f"{title}: {text}" if title else text for title, text in told if text]
        return round(self.score(question, texts), 4) if texts else None


def features(question: str, passages: Sequence[str], vectors: Vectors, rarity: Rarity) -> tuple[dict[str, float], Any, Any]:
    """What tells whether passages answer a question: similarity, shared words, the kind of thing asked for and found.

    Besides two embeddings, as `VECTORS` names them: the question's, and what the mean of the passages' has over it.
    """
    import numpy as np

    asked = words(question)
    content = [word for word in asked if word.content]
    wanted = frozenset(word.stem for word in content)
    names = {word.stem for word in asked if word.name}
    low = question.lower()
    kind = next((name for name, pattern in _KINDS if re.search(pattern, low)), "other")
    shown = [text for text in passages if text.strip()][:PASSAGES]
    cut = [_titled(text) for text in shown]
    stems = [frozenset(word.stem for word in words(text)) for text in shown]
    titles = [frozenset(word.stem for word in words(title)) for title, _ in cut]
    best = _shortlist(cut, titles, wanted, rarity)
    found = vectors([question, *(text[:LONGEST] for text in shown), *(f"{cut[place][0]}: {text}" for place, text in best)])
    own, of_passages, of_sentences = found[0], found[1 : len(shown) + 1], found[len(shown) + 1 :]
    near, close = of_passages @ own, of_sentences @ own
    held = np.array([rarity.share(wanted, each) for each in stems])
    told = np.array([rarity.share(wanted, frozenset(w.stem for w in words(text)) | titles[place]) for place, text in best])
    about = np.array([sum(map(rarity, wanted & each)) / max(1e-6, sum(map(rarity, each))) for each in titles])
    top, lead = int(near.argmax()), int((close + 0.5 * told).argmax())
    order, ranks = np.sort(near)[::-1], np.sort(close)[::-1]
    between = of_passages @ of_passages.T
    among = np.sort(between[top])[::-1][1:4]
    rare = max(wanted, key=rarity, default="")
    everywhere = frozenset().union(*stems)
    fits = [_fits(kind, words(text), wanted) for _, text in best]
    n = len(shown)

    def at(values: Any, place: int) -> float:
        return float(values[min(place, len(values) - 1)])

    values: dict[str, float] = {
        "p1": at(order, 0), "p2": at(order, 1), "pm": float(near.mean()), "pstd": float(near.std()), "plast": at(order, n - 1),
        "pgap": at(order, 0) - float(order[1:].mean() if n > 1 else order[0]), "t1": at(ranks, 0), "t2": at(ranks, 1),
        "t3": at(ranks, 2), "tm": float(close.mean()),
        "tgap": at(ranks, 0) - float(ranks[3:].mean() if len(ranks) > 3 else ranks[-1]),
        "c1": float(told.max()), "cm": float(np.sort(told)[::-1][:3].mean()), "s4": float(np.sort(told)[::-1][:4].mean()),
        "pc1": float(held.max()), "pcm": float(held.mean()), "cb": float(told[lead]), "comb": float((close + 0.5 * told)[lead]),
        "miss": max((rarity(stem) for stem in wanted - everywhere), default=0.0), "un": rarity.share(wanted, everywhere),
        "allhit": max((c + 0.5 * t for c, t, fit in zip(close.tolist(), told.tolist(), fits, strict=True) if fit), default=0.0),
        "hit": float(fits[lead]), "nohit": float(kind in ("time", "number", "name", "place") and not fits[lead]),
        "tc1": float(about.max()), "tcm": float(about.mean()), "ttop": float(about[top]),
        "titles": len({title for title, _ in cut}) / n, "same": sum(title == cut[top][0] for title, _ in cut) / n,
        "opens": float(best[lead][1] == sentences(cut[best[lead][0]][1])[0]), "qlen": float(len(content)),
        "ql": len(question) / 50, "names": float(len(names)), "mark": float(question.rstrip().endswith("?")),
        "caps": sum(map(str.isupper, question)) / len(question),
        "nmiss": float(len(names - everywhere)), "nmtop": len(names - stems[top]) / max(1, len(names)),
        "midf": sum(map(rarity, wanted)) / max(1, len(wanted)), "pp": float((between.sum() - n) / max(1, n * (n - 1))),
        "pptop": float(among.mean()) if len(among) else 0.0, "both": float((near * held).max()),
        "bothgap": float((near * held).max() - (near * held).mean()), "agree": float(best[lead][0] == top),
        "covtop": float(held[top]), "zmax": float((near[top] - near.mean()) / (near.std() + 1e-6)),
        "nhigh": float((near > near.max() - 0.05).mean()), "nfull": float((held > 0.85).mean()),
        "tsb": float((close * told).max()), "rare": sum(rare in each for each in stems) / n, "rtop": float(rare in stems[top]),
        "t1p1": float(close.max() - near.max()),
        "cs": float(np.corrcoef(near, held)[0, 1]) if n > 2 and held.std() > 0 and near.std() > 0 else 0.0,
        "is": float(bool(re.match(r"(?:is|are|did|does)\b", low))), "what": float(low.startswith("what")),
        "which": float(low.startswith("which")), "most": float(any(word.text in _SUPERLATIVES for word in asked)),
        "now": float(any(word.text in _NOW for word in asked)),
    }  # fmt: skip
    kinds = {f"kind_{name}": float(kind == name) for name in (*(name for name, _ in _KINDS), "other")}
    return values | kinds, own, of_passages.mean(0) - own


def _titled(passage: str) -> tuple[str, str]:
    title, colon, text = passage.partition(": ")
    return (title, text) if colon and len(title) <= 120 and "\n" not in title else ("", passage)


def _shortlist(
    cut: Sequence[tuple[str, str]], titles: Sequence[frozenset[str]], wanted: frozenset[str], rarity: Rarity
) -> list[tuple[int, str]]:
    """The sentences that share most with the question, each with the place of its passage."""
    found = []
    for place, (_, text) in enumerate(cut):
        for sentence in sentences(text):
            own = frozenset(word.stem for word in words(sentence))
            score = sum(map(rarity, wanted & own)) + 0.6 * sum(map(rarity, (wanted & titles[place]) - own)) - 0.005 * len(own)
            found.append((score, place, sentence))
    found.sort(key=lambda each: (-each[0], each[2]))
    return [(place, sentence) for _, place, sentence in found[:SENTENCES]]


def _fits(kind: str, sentence: Sequence[Word], wanted: frozenset[str]) -> bool:
    """Whether a sentence holds the kind of thing that is asked for, beside what the question names itself."""
    new = [word for word in sentence if word.stem not in wanted]
    if kind == "time":
        return any((word.number and len(word.text) in (3, 4)) or word.text in _MONTHS for word in new)
    if kind == "number":
        return any(word.number for word in new)
    return any(word.name for word in new) if kind in ("name", "place") else True
