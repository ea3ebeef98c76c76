"""How far a text is supported by passages: lexical, numeric and name features, and sentence similarity, sentence by sentence.

The encoder comes in as a callable (texts -> unit vectors), so that this room needs none of its own.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

Embed = Callable[[Sequence[str]], Any]
"""Blocking; an array of a unit vector for each text."""

SENTENCES, CLAIMS, SHORTLIST, LONGEST = 200, 12, 3, 400
"""Sentences read of the passages and of the text; sentences that are looked at for each of the text's; characters of one."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|\d+(?:[.,:]\d+)*")
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[A-Z0-9\"'(])|\n+")
STOP = frozenset(
    re.findall(
        r"\S+",
        "a an the of in on at by to from for with without into onto about as is are was were be been being am do does "
        "did done has have had having can could will would shall should may might must and or but nor not no so if then "
        "than that this these those there here it its i me my mine we us our you your he him his she her they them "
        "their what which who whom whose when where why how s t also just up out off over under again further once "
        "between through during before after above below both few all any some each such other more most very too only "
        "own same while ",
    )
)
NEGATIONS = frozenset(
    re.findall(
        r"\S+",
        "not no never none without neither nor cannot nothing nobody nowhere hardly barely rarely unable fail failed "
        "fails lack lacks lacked refuse refused deny denied n't ",
    )
)
_TALK = frozenset(
    re.findall(
        r"\S+",
        "i me my mine we us our you your i'm i've i'd i'll you're you've let's ",
    )
)
_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        re.findall(
            r"\S+",
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen twenty ",
        )
    )
}
_LOWEST = frozenset(
    re.findall(
        r"\S+",
        "cov cov1 cov3 g2 g3 g4 run dens ",
    )
)
"""Features of which the weakest sentence is the one with the lowest value."""


@dataclass(frozen=True, slots=True)
class Word:
    stem: str
    text: str
    name: bool
    """Capitalised within its sentence."""
    start: int
    end: int
    """Where it stands."""

    @property
    def number(self) -> bool:
        return self.text[0].isdigit()

    @property
    def content(self) -> bool:
        return self.text not in STOP and self.text != "n't"


@cache
def _stemmer() -> Any:
    from Stemmer import Stemmer

    return Stemmer("english")


@lru_cache(65_536)
def _stem(word: str) -> str:
    return _stemmer().stemWord(word)


@lru_cache(16_384)
def words(text: str) -> tuple[Word, ...]:
    """Lower-case words with their stems; number words are digits, `n't` is a word of its own."""
    found = []
    for match in _WORD.finditer(text):
        word = match.group().lower().replace("’", "'").removesuffix("'s")
        negated = word.endswith("n't")
        word = word.removesuffix("n't")
        if word:
            word = _NUMBERS.get(word, word)
            if word[0].isdigit():
                word = word.replace(",", "")
            found.append(Word(_stem(word), word, match.start() > 0 and match.group()[0].isupper(), *match.span()))
        if negated:
            found.append(Word("n't", "n't", False, *match.span()))
    return tuple(found)


@lru_cache(65_536)
def _parts(token: str) -> tuple[str, ...]:
    if token.isalpha() and token not in _NUMBERS:  # most are; the rest is as in `words`
        return (_stem(token),)
    return tuple(word.stem for word in words(token))


def stems(text: str) -> list[str]:
    """The stems of `words(text)`, several times as fast for long texts."""
    return [stem for token in _WORD.findall(text.lower()) for stem in _parts(token)]


def sentences(text: str) -> list[str]:
    cut = [part.strip() for part in _SENTENCE.split(text)]
    return [part[start : start + LONGEST] for part in cut if part for start in range(0, len(part), LONGEST)] or [""]


@dataclass(frozen=True)
class Evidence:
    """Passages taken apart once."""

    sentences: list[str]
    stems: list[frozenset[str]]
    everything: frozenset[str]
    running: str
    """All stems in their order, a space around each."""
    frequency: Counter[str]

    def holds(self, run: tuple[str, ...]) -> bool:
        """Whether these stems stand there one after the other."""
        return f" {' '.join(run)} " in self.running


@lru_cache(256)
def evidence(text: str) -> Evidence:
    cut = sentences(text)[:SENTENCES]
    told = [stems(sentence) for sentence in cut]
    held = [frozenset(each) for each in told]
    flat = [stem for each in told for stem in each]
    return Evidence(cut, held, frozenset(flat), f" {' '.join(flat)} ", Counter(stem for each in held for stem in each))


class Vectors:
    """Embeddings by text, each made once; the least recently made leave when there are too many.

    `longest`: characters of a text that are embedded.
    """

    def __init__(self, embed: Embed, size: int = 50_000, longest: int | None = None) -> None:
        self._embed, self._size, self._longest, self._known = embed, size, longest, {}

    def __call__(self, texts: Sequence[str]) -> Any:
        import numpy as np

        texts = [text[: self._longest] for text in texts]
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        if missing:
            self._known.update(zip(missing, self._embed(missing), strict=True))
        found = np.stack([self._known[text] for text in texts])
        while len(self._known) > self._size:
            self._known.pop(next(iter(self._known)), None)
        return found


def features(passages: str, text: str, vectors: Callable[[Sequence[str]], Any]) -> dict[str, float]:
    """The features of a text against its passages: mean (`_m`) and weakest (`_w`) over its sentences, and its measures.

    Only the sentence of which the passages hold the fewest words is compared by its vector (`cos`): the encoder takes most of the
    time, and the vectors of the others have told nothing more.
    """
    ground = evidence(passages)
    cut = sentences(text)[:CLAIMS]
    told = [sentence for sentence in cut if any(word.content for word in words(sentence))] or cut[:1]
    ranked = [nearest(ground, frozenset(word.stem for word in words(sentence) if word.content)) for sentence in told]
    each = [_sentence(ground, *one) for one in zip(told, ranked, strict=True)]
    found: dict[str, float] = {}
    for key in each[0]:
        values = [one[key] for one in each]
        found[f"{key}_m"] = sum(values) / len(values)
        found[f"{key}_w"] = min(values) if key in _LOWEST else max(values)
    weakest = min(range(len(each)), key=lambda place: each[place]["cov3"])
    mine, theirs = told[weakest], ground.sentences[ranked[weakest][0]]
    cos = 1.0
    if mine != theirs:
        one, other = vectors([mine, theirs])  # in one run of the encoder
        cos = float(one @ other)
    return found | {"cos": cos, "cosgap": cos - each[weakest]["cov1"], "sentences": math.log(len(each))}


def nearest(ground: Evidence, wanted: frozenset[str]) -> list[int]:
    """The passages' sentences that share most with a text's, rare words counting more, best first."""

    def closeness(place: int) -> float:
        shared = wanted & ground.stems[place]
        rare = sum(1 / (math.log1p(ground.frequency[stem]) + 0.5) for stem in shared)
        return rare / (1 + 0.01 * len(ground.stems[place]))

    return sorted(range(len(ground.sentences)), key=closeness, reverse=True)[:SHORTLIST]


def _sentence(ground: Evidence, sentence: str, ranked: Sequence[int]) -> dict[str, float]:
    said = words(sentence)
    content = [word for word in said if word.content]
    wanted = {word.stem for word in content}
    n = max(1, len(wanted))
    near = frozenset().union(*(ground.stems[place] for place in ranked))
    best = ranked[0]
    new = [word for word in content if word.stem not in ground.everything]
    numbers = [word for word in content if word.number]
    names = [word for word in content if word.name]
    plain = [word for word in new if not word.name and not word.number]
    sequence = [word.stem for word in said]
    cov = len(wanted & ground.everything) / n
    found = {
        "cov": cov, "cov1": len(wanted & ground.stems[best]) / n, "cov3": len(wanted & near) / n,
        "novel": math.log1p(len({word.stem for word in new})), "lownovel": float(len(plain)),
        "nummiss": float(sum(word.stem not in ground.everything for word in numbers)),
        "num3": float(sum(word.stem not in near for word in numbers)), "nums": math.log1p(len(numbers)),
        "namemiss": float(sum(word.stem not in ground.everything for word in names)),
        "name3": float(sum(word.stem not in near for word in names)), "names": math.log1p(len(names)),
        "first": float(any(word.text in _TALK for word in said)), "ask": float(sentence.rstrip().endswith("?")),
        "len": math.log1p(len(content)),
    }  # fmt: skip
    for size in (2, 3, 4):
        grams = set(zip(*(sequence[i:] for i in range(size)), strict=False))
        found[f"g{size}"] = sum(map(ground.holds, grams)) / len(grams) if grams else cov
    found |= _copied(sequence, ground)
    negated = any(word.text in NEGATIONS for word in said)
    in_best = any(word.text in NEGATIONS for word in words(ground.sentences[best]))
    found["negc"], found["negd"] = float(negated and not in_best), float(in_best and not negated)
    found["neg_novel"] = float(negated and not any(NEGATIONS & ground.stems[place] for place in ranked))
    return found


def _copied(sequence: Sequence[str], ground: Evidence) -> dict[str, float]:
    """The longest stretch that the passages hold too, and how dense such stretches are (Grusky et al. 2018)."""
    runs, run = [], 0
    for pair in pairwise(sequence):
        if ground.holds(pair):
            run += 1
        else:
            runs.append(run)
            run = 0
    runs.append(run)
    dense = sum(run * run for run in runs) / max(1, len(sequence))
    return {"run": max(runs) / max(1, len(sequence) - 1), "dens": math.log1p(dense)}


def probability(logit: float) -> float:
    """What log-odds stand for; bounded, so that no exponent overflows."""
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, logit))))
