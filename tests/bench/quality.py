"""How often the right passage is found: this search, its two halves, and what each part of it adds.

    python -m tests.bench.quality --data FOLDER [--sets xquad,scifact,wice,odd,codes,rules,headings,functions,FOLDER]

`--data` holds `scifact/` and `qa/xquad/`, and for choosing parameters SciFact's train claims, `groundedness/wice/` and `docs/`.
The lines `scifact-train` and `wice` and the sets of `tests.bench.found` are what the weights were chosen on; `scifact-test`,
`xquad-en` and what is made of it, and `codes` are only reported.
Prints one JSON object: nDCG@10, hits@1 and hits@5 of each way to search, and the 95 % interval of hybrid less the better half.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import Encoder, words
from retrieval.late import Asked
from retrieval.memory import Memory, Page
from retrieval.search import Hit, search
from tests.bench import found

WAYS = {
    "hybrid": ("hybrid", "convex"),
    "convex": ("hybrid", "convex"),
    "rrf": ("hybrid", "rrf"),
    "dense": ("dense", ""),
    "lexical": ("lexical", ""),
}
Set = tuple[dict[str, tuple[str, str]], dict[str, tuple[dict[str, str], dict[str, set[str]]]]]


def scifact(data: Path) -> Set:
    csv.field_size_limit(10**9)
    quoted = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
    docs: dict[str, tuple[str, str]] = {}
    with (data / "scifact/corpus_train.csv").open() as file:
        for row in csv.DictReader(file):
            docs[row["doc_id"]] = row["title"], " ".join(a or b for a, b in quoted.findall(row["abstract"])).replace("\\n", " ")
    train: tuple[dict[str, str], dict[str, set[str]]] = {}, {}
    with (data / "scifact/claims_train.csv").open() as file:
        for row in csv.DictReader(file):
            train[0][row["id"]] = row["claim"]
            train[1].setdefault(row["id"], set()).update(re.findall(r"\d+", row["cited_doc_ids"]))
    with gzip.open(data / "scifact/topics.beir-v1.0.0-scifact.test.tsv.gz", "rt") as file:
        topics = dict(line.rstrip("\n").split("\t") for line in file)
    right: dict[str, set[str]] = {}
    for line in (data / "scifact/qrels.beir-v1.0.0-scifact.test.txt").read_text().splitlines():
        topic, _, doc, grade = line.split()
        if int(grade):
            right.setdefault(topic, set()).add(doc)
    return docs, {"scifact-train": train, "scifact-test": (topics, right)}


def xquad(data: Path) -> Set:
    docs, asked, right = {}, {}, {}
    for article in json.loads((data / "qa/xquad/xquad.en.json").read_text())["data"]:
        for paragraph in article["paragraphs"]:
            key = str(len(docs))
            docs[key] = "", paragraph["context"]
            for each in paragraph["qas"]:
                asked[each["id"]], right[each["id"]] = each["question"], {key}
    return docs, {"xquad-en": (asked, right)}


def wice(data: Path) -> Set:
    docs: dict[str, tuple[str, str]] = {}
    asked, right, met = {}, {}, {}
    for number, line in enumerate((data / "groundedness/wice/claim_dev.jsonl").read_text().splitlines()):
        row = json.loads(line)
        evidence = tuple(row["evidence"])
        if evidence not in met:
            at, part = met.setdefault(evidence, {}), []
            for i, sentence in enumerate(evidence):
                part.append(sentence)
                at[i] = str(len(docs))
                if sum(len(each.split()) for each in part) > 100 or i == len(evidence) - 1:
                    docs[str(len(docs))], part = ("", " ".join(part)), []
        found = {met[evidence][i] for group in row["supporting_sentences"] for i in group}
        if found:
            asked[str(number)], right[str(number)] = row["claim"], found
    return docs, {"wice": (asked, right)}


def odd(data: Path) -> Set:
    """XQuAD's paragraphs, asked for as people also do: shouting, mistyping, by one word, by what they remember, at length."""
    docs, sets = xquad(data)
    draw = random.Random(0)
    (asked, right), words_of = sets["xquad-en"], {key: re.findall(r"\w+", text) for key, (_, text) in docs.items()}
    held = Counter(word.lower() for found in words_of.values() for word in set(found))

    def mistyped(word: str) -> str:
        at = draw.randrange(max(len(word) - 1, 1))
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :] if len(word) > 3 and draw.random() < 0.4 else word

    chosen = draw.sample(sorted(asked), 300)
    made: dict[str, tuple[dict[str, str], dict[str, set[str]]]] = {}
    for name, ask in (
        ("capitals", lambda question, _: question.upper()),
        ("mistyped", lambda question, _: " ".join(map(mistyped, question.split()))),
        ("one word", lambda _, key: min(words_of[key], key=lambda word: (held[word.lower()] if len(word) > 3 else 999, word))),
        ("remembered", lambda _, key: " ".join(draw.sample(words_of[key], 12))),
        ("300 words", lambda question, key: f"{question} " * 3 + " ".join(draw.choices(words_of[key], k=300))),
    ):
        made[f"xquad, {name}"] = (
            {key: ask(asked[key], next(iter(right[key]))) for key in chosen},
            {key: right[key] for key in chosen},
        )
    return docs, made


def codes(data: Path) -> Set:
    """Records that are alike but for a few words, asked for by their code and by what they say."""
    draw = random.Random(0)
    parts, faults = ("valve", "pump", "sensor", "relay", "fan"), ("leaks", "is stuck", "overheats", "gives no signal", "is loud")
    docs, by_code, by_words, right = {}, {}, {}, {}
    for number in range(600):
        code, part, fault, hall = (
            f"{draw.choice('ABC')}X-{1000 + number}/{draw.randrange(9)}",
            draw.choice(parts),
            draw.choice(faults),
            number,
        )
        docs[code] = "", f"Ticket {code}. The {part} in hall {hall} {fault}. Reported by the night shift; see the manual."
        by_code[code], by_words[code], right[code] = f"what about {code}?", f"which {part} {fault} in hall {hall}?", {code}
    return docs, {"codes": (by_code, right), "codes, by words": (by_words, right)}


def beir(folder: Path) -> Set:
    """A collection as BEIR has them (https://github.com/beir-cellar/beir): `corpus.jsonl`, `queries.jsonl`, `qrels/test.tsv`."""
    lines = lambda name: [json.loads(line) for line in (folder / name).read_text().splitlines() if line.strip()]  # noqa: E731
    docs = {row["_id"]: (row.get("title") or "", row.get("text") or "") for row in lines("corpus.jsonl")}
    asked, right = {row["_id"]: row["text"] for row in lines("queries.jsonl")}, dict[str, set[str]]()
    for row in csv.DictReader((folder / "qrels/test.tsv").open(), delimiter="\t"):
        if int(row["score"]) > 0 and row["corpus-id"] != row["query-id"]:  # a question that is a document finds itself
            right.setdefault(row["query-id"], set()).add(row["corpus-id"])
    return docs, {folder.name: ({key: text for key, text in asked.items() if key in right}, right)}


class Held:
    """A collection as searches hold it."""

    def __init__(self, docs: Mapping[str, tuple[str, str]], vectors: np.ndarray) -> None:
        held = [words.encode(text, title) for title, text in docs.values()]
        self._page = Page(range(1, len(docs) + 1), list(docs), [each.tobytes() for each in vectors], held, [{}] * len(docs))

    def seqs(self) -> np.ndarray:
        return np.array(self._page.seqs)

    def frozen(self) -> Any:
        return nullcontext(self)

    def pages(self, after: int) -> Iterator[Page]:
        yield self._page


def gain(order: list[str], right: set[str]) -> float:
    got = sum(1 / np.log2(i + 2) for i, key in enumerate(order[:10]) if key in right)
    return got / sum(1 / np.log2(i + 2) for i in range(min(len(right), 10)))


def interval(differences: np.ndarray) -> list[float]:
    """95 % bootstrap interval of the mean of paired differences."""
    rng = np.random.default_rng(0)
    means = [rng.choice(differences, len(differences)).mean() for _ in range(2000)]
    return [round(float(q), 4) for q in np.quantile(means, [0.025, 0.975])]


SETS = {"scifact": scifact, "xquad": xquad, "wice": wice, "odd": odd, "codes": codes, **found.SETS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="xquad,scifact,wice")
    options = parser.parse_args()
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        encoder = Encoder.load(Path(folder))
        for name in options.sets.split(","):
            docs, sets = SETS[name](options.data) if name in SETS else beir(Path(name))
            vectors, pieces = encoder.embed_pieces([f"{title}\n{text}" if title else text for title, text in docs.values()])
            rows = Memory(Held(docs, vectors), encoder.dimension).snapshot()

            def ranked(text: str, question: Asked, mode: str, fusion: str, late: bool) -> list[Hit]:
                held = (lambda slots: [pieces[slot] for slot in slots]) if late else None  # noqa: B023
                return search(rows, text, question.vector, 10, mode, fusion=fusion, asked=question, pieces=held)  # noqa: B023

            for label, (asked, right) in sets.items():
                asked = {key: text for key, text in asked.items() if right.get(key)}
                embedded = {key: encoder.ask(text) for key, text in asked.items()}
                gains: dict[str, np.ndarray] = {}
                told[label] = {"questions": len(asked), "passages": len(docs)}
                for way, (mode, fusion) in WAYS.items():
                    orders = [
                        [rows.keys[hit.slot] for hit in ranked(text, embedded[key], mode, fusion, way == "hybrid")]
                        for key, text in asked.items()
                    ]
                    pairs = list(zip(orders, asked, strict=True))
                    gains[way] = np.array([gain(order, right[key]) for order, key in pairs])
                    hits = {k: np.mean([bool(set(order[:k]) & right[key]) for order, key in pairs]) for k in (1, 5)}
                    told[label][way] = {"nDCG@10": round(float(gains[way].mean()), 4)} | {
                        f"hits@{k}": round(float(share), 4) for k, share in hits.items()
                    }
                half = max(("dense", "lexical"), key=lambda way: gains[way].mean())
                told[label][f"hybrid_less_{half}"] = interval(gains["hybrid"] - gains[half])
        encoder.close()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
