"""What an encoder gains that is trained on questions of the collection it searches: SciFact's train claims.

    python -m tests.bench.trained --data FOLDER [--threads 4]
    python -m tests.bench.trained --data FOLDER --write claims
    python -m tests.bench.trained --data FOLDER --ask main.default.claims [--server http://127.0.0.1:8000]

`finetune/recipes/embed.yaml` on claims and the abstracts they cite, each with a wrong one that the search before ranked high. The
claims that cite one of 90 abstracts are held out. Prints one JSON object: nDCG@10 before and after, by vectors alone and by the
combination with words, on the held-out claims and on the test topics, split by whether a topic is answered by an abstract that
answers a train claim as well.

`--write` writes what is trained on and searched instead (train.jsonl, eval.jsonl, corpus.jsonl), for the shipped commands.
`--ask` puts the test topics to an index of a running server, with the key in `SMALTI_KEY`, and tells its nDCG@10.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from retrieval import Encoder
from retrieval.memory import Memory, Snapshot
from retrieval.search import search
from tests.bench.quality import Held, gain, interval, scifact

HELD_OUT = 90
Embed = Callable[[Sequence[str]], np.ndarray]
Asked = Mapping[str, str]
Right = Mapping[str, set[str]]


def found(rows: Snapshot, text: str, vector: np.ndarray, mode: str, k: int = 10) -> list[str]:
    return [rows.keys[hit.slot] for hit in search(rows, text, vector, k, mode, fusion="convex")]


def gains(
    docs: Any, texts: Sequence[str], embed: Embed, sets: Mapping[str, tuple[Asked, Right]]
) -> dict[str, dict[str, np.ndarray]]:
    """nDCG@10 of each question, by set and way to search."""
    rows = Memory(Held(docs, embed(texts)), 384).snapshot()
    told: dict[str, dict[str, np.ndarray]] = {}
    for label, (asked, right) in sets.items():
        vectors = dict(zip(asked, embed(list(asked.values())), strict=True))
        for mode in ("dense", "hybrid"):
            each = [gain(found(rows, text, vectors[key], mode), right[key]) for key, text in asked.items()]
            told.setdefault(label, {})[mode] = np.array(each)
    return told


def pairs(rows: Snapshot, embed: Embed, full: Mapping[str, str], asked: Asked, right: Right) -> list[dict[str, Any]]:
    rng = random.Random(0)
    vectors = embed(list(asked.values()))
    written = []
    for (key, text), vector in zip(asked.items(), vectors, strict=True):
        wrong = [name for name in found(rows, text, vector, "hybrid", 12) if name not in right[key]][:8]
        written += [{"query": text, "positive": full[name], "negative": [full[rng.choice(wrong)]]} for name in sorted(right[key])]
    return written


def trained(train: Path, threads: int) -> Embed:
    from finetune.base_model import locate
    from finetune.jobs import job_of
    from finetune.loop import Loop
    from finetune.recipe import load_recipe
    from finetune.schema import EmbedRecipe

    given = {"task": "embed", "method": "full", "name": "claims", "base_model": "all-MiniLM-L6-v2", "data": {"train": str(train)}}
    given |= {"max_length": 160, "batch_size": 32, "training_duration": "3ep", "learning_rate": 5e-5, "threads": threads}
    recipe = load_recipe({**given, "train_embeddings": False})
    assert isinstance(recipe, EmbedRecipe)
    task = job_of(recipe).task(locate(recipe.base_model), "cpu")
    with tempfile.TemporaryDirectory() as folder:
        Loop(task, recipe, Path(folder)).run()
    task.tokenizer.enable_truncation(256)  # as the built-in encoder reads
    return task.embed


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def asked_of(server: str, index: str, topics: Asked, answers: Right) -> dict[str, Any]:
    """nDCG@10 of an index of a running server, by vectors alone and by the combination with words."""
    told: dict[str, Any] = {"index": index, "questions": len(topics)}
    with httpx.Client(base_url=server, headers={"Authorization": f"Bearer {os.environ['SMALTI_KEY']}"}, timeout=60) as client:
        for kind in ("ANN", "HYBRID"):
            each = []
            for key, text in topics.items():
                body = {"query_text": text, "columns": ["id"], "num_results": 10, "query_type": kind}
                response = client.post(f"/api/2.0/vector-search/indexes/{index}/query", json=body).raise_for_status()
                each.append(gain([row[0] for row in response.json()["result"]["data_array"]], answers[key]))
            told[kind] = round(float(np.mean(each)), 4)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--ask")
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    options = parser.parse_args()
    docs, given = scifact(options.data)
    full = {key: f"{title}\n{text}" for key, (title, text) in docs.items()}
    asked, right = given["scifact-train"]
    kept_back = set(random.Random(0).sample(sorted({doc for each in right.values() for doc in each}), HELD_OUT))
    claims = {asked[key] for key in asked if right[key] & kept_back}
    held = {key: text for key, text in asked.items() if text in claims}
    learnt = {key: text for key, text in asked.items() if text not in claims}
    topics, answers = given["scifact-test"]
    topics = {key: text for key, text in topics.items() if answers.get(key)}
    met = {doc for key in learnt for doc in right[key]}
    seen = np.array([bool(answers[key] & met) for key in topics])
    sets = {"held_out_claims": (held, right), "test": (topics, answers)}
    if options.ask:
        print(json.dumps(asked_of(options.server, options.ask, topics, answers)))
        return
    with tempfile.TemporaryDirectory() as name:
        encoder = Encoder.load(Path(name))
        rows = Memory(Held(docs, encoder.embed(list(full.values()))), 384).snapshot()
        written = pairs(rows, encoder.embed, full, learnt, right)
        if options.write:
            options.write.mkdir(parents=True, exist_ok=True)
            lines(options.write / "train.jsonl", written)
            lines(
                options.write / "eval.jsonl",
                ({"query": t, "positive": full[d]} for k, t in held.items() for d in sorted(right[k])),
            )
            lines(options.write / "corpus.jsonl", ({"id": key, "text": text} for key, text in full.items()))
            encoder.close()
            return
        import torch

        torch.set_num_threads(options.threads)
        train = Path(name) / "train.jsonl"
        lines(train, written)
        before = gains(docs, list(full.values()), encoder.embed, sets)
        began = time.perf_counter()
        embed = trained(train, options.threads)
        told: dict[str, Any] = {"pairs": len(written), "training_s": round(time.perf_counter() - began)}
        after = gains(docs, list(full.values()), embed, sets)
        encoder.close()
    parts = {"test": np.ones(len(seen), bool), "test, abstracts of train claims": seen, "test, other abstracts": ~seen}
    for label in sets:
        for mode in ("dense", "hybrid"):
            for part, chosen in (parts if label == "test" else {label: np.ones(len(held), bool)}).items():
                one, other = before[label][mode][chosen], after[label][mode][chosen]
                line = {"questions": len(one), "before": round(float(one.mean()), 4), "after": round(float(other.mean()), 4)}
                told.setdefault(part, {})[mode] = line | {"gained": interval(other - one)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
