"""Questions made from an index's passages: by templates, or by a language model whose answers are held against the passage.

What is made is a start for people to go through, not a measure of how real users ask. Each row says how it was made (`made_by`),
and names its passage's source; rows of one source are one group.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from evals.collect import normal
from evals.support import Embed, sentences, words

Ask = Callable[[str], Awaitable[str]]
"""`await ask(prompt)`: a language model's answer."""

AT_ONCE = 4
"""Passages that a language model is shown at the same time."""

SAME_WORDS, SAME_MEANING = 0.8, 0.92
"""Two questions are one when so much of their words (Jaccard), or their embeddings' cosine, is the same."""

_DEFINITION = re.compile(
    r"^(?!The |An? )(`[^`]{2,40}`|[A-Z][\w-]*(?: [\w-]+){0,3}) (?:is|are) (?:an? |the )([a-z][^.;:()]{15,160})"
)
_NUMBER = re.compile(r"(?<![\w.,-])(\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)(?![\w,-]|\.\d)")
_CODE = re.compile(r"[{}=<>/\\]|  |\w\(")
_SYLLABLES = ("bra", "dol", "fen", "gar", "kel", "lum", "mor", "nix", "pel", "quon", "ris", "tav", "ul", "vex", "zor")
_PROMPT = """Write questions for a test of a search system, about the passage between the lines.

----
{passage}
----

Answer with one JSON object and nothing else:
{{"question": "a question that the passage answers, which can be understood without seeing the passage",
 "answer": "the shortest answer, copied from the passage word for word",
 "unanswerable": "a question on the same subject that a reader would expect to be answered, and the passage does not answer"}}"""


def by_templates(passages: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Questions of definitions, numbers and headings, with the words that must be in the answer.

    `passages` have `text`, `source` and, where they are known, `heading`s.
    """
    for passage in passages:
        source = str(passage["source"])
        common = {"expected_sources": [source], "group": source}
        for heading in list(passage.get("heading") or ())[-1:]:
            if 2 <= len(words(heading)) <= 8:
                said = heading.strip().rstrip("?.:")
                yield {"question": f"What is written about {said}?", **common, "made_by": "template: heading"}
        for sentence in sentences(str(passage["text"]))[:40]:
            if not 40 <= len(sentence) <= 300 or sentence.lstrip()[:1] in "#|>*-`":
                continue
            if found := _DEFINITION.match(sentence):
                subject, told = found.group(1).strip("`"), found.group(2)
                if subject.split()[0].lower() not in (
                    "this",
                    "these",
                    "that",
                    "it",
                    "there",
                    "what",
                    "if",
                    "when",
                    "all",
                    "each",
                ):
                    fact = " ".join(told.split()[:5]).rstrip(",")
                    question = f"What is {subject}?"
                    yield {"question": question, "expected_facts": [fact], **common, "made_by": "template: definition"}
            if sentence[-1] in ".!" and not _CODE.search(sentence) and len(found := list(_NUMBER.finditer(sentence))) == 1:
                cloze = f"{sentence[: found[0].start()]}____{sentence[found[0].end() :]}"
                question = f"Which number belongs in: {cloze.strip()}"
                yield {"question": question, "expected_facts": [found[0].group(1)], **common, "made_by": "template: number"}


def unanswerable(rows: Sequence[Mapping[str, Any]], vocabulary: frozenset[str], draw: random.Random) -> Iterator[dict[str, Any]]:
    """Questions of the same form about things that do not exist: their names are in no passage, so no answer can be there."""
    while rows:
        name = "".join(draw.choice(_SYLLABLES) for _ in range(draw.randint(2, 3))).capitalize()
        if name.lower() in vocabulary:
            continue
        form = draw.choice((f"What is {name}?", f"How is {name} configured?", f"Which version introduced {name}?",
                            f"What is the default of the {name} setting?", f"What is written about {name}?"))  # fmt: skip
        yield {"question": form, "unanswerable": True, "made_by": "template: invented name"}


async def by_model(passage: Mapping[str, Any], ask: Ask) -> list[dict[str, Any]]:
    """A question whose answer is in the passage word for word, and one that it does not answer, from a language model.

    An answer that the passage does not hold, or one that is no JSON, gives nothing.
    """
    said = await ask(_PROMPT.format(passage=str(passage["text"])[:4000]))
    found = re.search(r"\{.*\}", said, re.DOTALL)
    try:
        told = json.loads(found.group()) if found else None
    except ValueError:
        return []
    if not isinstance(told, dict):
        return []
    source = str(passage["source"])
    question, answer, other = (str(told.get(key) or "").strip() for key in ("question", "answer", "unanswerable"))
    rows: list[dict[str, Any]] = []
    if question and answer and normal(answer) in normal(str(passage["text"])):
        rows.append({
            "question": question, "expected_facts": [answer], "expected_sources": [source], "group": source,
            "passage": str(passage["text"]), "made_by": "model",
        })  # fmt: skip
    if rows and other and normal(other) != normal(question):
        rows.append({"question": other, "unanswerable": True, "group": source, "made_by": "model", "unchecked": True})
    return rows


def distinct(rows: Sequence[dict[str, Any]], embed: Embed | None = None) -> list[dict[str, Any]]:
    """The rows without those that ask what an earlier one asks, by their words and, with an encoder, by their meaning.

    Templates put the same words around different subjects, so meaning is compared among a model's questions alone.
    """
    return _Distinct(embed).new(rows)


class _Distinct:
    """Questions met so far; `new` gives those of further rows that none of them asks."""

    def __init__(self, embed: Embed | None) -> None:
        self._embed = embed
        self._words: list[frozenset[str]] = []
        self._meanings: list[Any] = []

    def new(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        kept: list[dict[str, Any]] = []
        for row in rows:
            own = frozenset(word.text for word in words(row["question"]))
            if own and not any(len(own & other) >= SAME_WORDS * len(own | other) for other in self._words):
                kept.append(row)
                self._words.append(own)
        free = [row for row in kept if row["made_by"] == "model"]
        if self._embed is None or not free:
            return kept
        again = set()
        for row, vector in zip(free, self._embed([row["question"] for row in free]), strict=True):
            if any(float(vector @ other) >= SAME_MEANING for other in self._meanings):
                again.add(row["question"])
            else:
                self._meanings.append(vector)
        return [row for row in kept if row["question"] not in again]


async def generate(
    passages: Sequence[Mapping[str, Any]],
    count: int,
    *,
    share: float = 0.2,
    seed: int = 0,
    ask: Ask | None = None,
    embed: Embed | None = None,
    failures: list[BaseException] | None = None,
) -> list[dict[str, Any]]:
    """So many rows at most, spread over the sources, the same for the same passages and seed.

    Parameters
    ----------
    passages: of the index. count: rows wanted. share: of them that have no answer, 0 to 1.
    ask: a language model in place of the templates; it is shown `AT_ONCE` passages at a time.
    embed: tells questions that mean the same.
    failures: gets what `ask` raised; the passages in question give no row.

    Raises
    ------
    ValueError: `count` or `share` is out of range. What `ask` raises, where it answers nothing at all.
    """
    failures = [] if failures is None else failures
    if count < 1 or not 0 <= share <= 1:
        raise ValueError(f"count {count} or share {share} is out of range: give at least 1 row and a share from 0 to 1")
    draw = random.Random(seed)
    spread = list(_spread(passages, draw))
    without = round(count * share)
    if ask is None:
        found = distinct(_alternating(list(by_templates(spread)), draw), embed)[: count - without]
        vocabulary = frozenset(word.text for passage in passages for word in words(str(passage["text"])))
        made = unanswerable(found or [{}], vocabulary, draw)
        names: dict[str, dict[str, Any]] = {}
        while len(names) < without and passages:
            row = next(made)
            names.setdefault(row["question"], row)
        return found + list(names.values())
    answered, others, seen = [], [], _Distinct(embed)
    for start in range(0, len(spread), AT_ONCE):
        if len(answered) >= count - without and len(others) >= without:
            break
        shown = spread[start : start + AT_ONCE]
        said = await asyncio.gather(*(by_model(passage, ask) for passage in shown), return_exceptions=True)
        failed = [each for each in said if isinstance(each, BaseException)]
        if len(failed) == len(said) and not answered:
            raise failed[0]
        failures.extend(failed)
        for row in seen.new([row for each in said if not isinstance(each, BaseException) for row in each]):
            (others if row.get("unanswerable") else answered).append(row)
    return answered[: count - without] + others[:without]


def _spread(passages: Sequence[Mapping[str, Any]], draw: random.Random) -> Iterator[Mapping[str, Any]]:
    """Passages drawn so that every source has its turn before one has its second."""
    by_source: dict[str, list[Mapping[str, Any]]] = {}
    for passage in passages:
        by_source.setdefault(str(passage["source"]), []).append(passage)
    piles = list(by_source.values())
    draw.shuffle(piles)
    for pile in piles:
        draw.shuffle(pile)
    while piles:
        for pile in piles:
            yield pile.pop()
        piles = [pile for pile in piles if pile]


def _alternating(rows: list[dict[str, Any]], draw: random.Random) -> list[dict[str, Any]]:
    """One of each kind of template after another, so that no kind crowds out the others."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(row["made_by"], []).append(row)
    for pile in kinds.values():
        pile.reverse()
    mixed: list[dict[str, Any]] = []
    while any(kinds.values()):
        mixed += [pile.pop() for pile in kinds.values() if pile]
    return mixed
