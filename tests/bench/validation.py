"""How many rows a minute `smalti finetune validate` looks at, personal data included, by recipe and by format.

    python -m tests.bench.validation [CASE …] [--rows 100000] [--formats jsonl json csv parquet]

Rows are made up: tweets of 20 words, prompts of 12 with responses of 35, chats of four messages, passages of 30; each is another
one, and some have links, numbers and characters beyond ASCII. One in a thousand repeats another. Prints a table: rows a minute by
the clock, and in brackets by the processor's time; and at the end one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMATS = ("jsonl", "json", "csv", "parquet")
ODD = ("https://example.org/a/b", "3.14", "café", "don't", "v2.0.1", "#mood", "2024-05-01", "“so”", "12,500", "e.g.")


def words(draw: random.Random, count: int) -> str:
    """A text of some words, each of a few letters, now and then an odd one."""
    found = draw.choices(VOCABULARY, k=count)
    if draw.random() < 0.5:
        found[draw.randrange(count)] = draw.choice(ODD)
    return " ".join(found).capitalize() + "."


LETTERS = "e" * 12 + "t" * 9 + "a" * 8 + "o" * 8 + "i" * 7 + "n" * 7 + "shr" * 6 + "dl" * 4 + "cumwfgypbvk"
VOCABULARY = ["".join(random.Random(i).choices(LETTERS, k=1 + i % 10)) for i in range(5000)]


def labelled(draw: random.Random, number: int) -> dict[str, Any]:
    return {"text": words(draw, 20), "label": ("good", "bad", "so so")[number % 3]}


def instruct(draw: random.Random, number: int) -> dict[str, Any]:
    return {"prompt": words(draw, 12), "response": words(draw, 35)}


def chat(draw: random.Random, number: int) -> dict[str, Any]:
    turns = (("user", 12), ("assistant", 20), ("user", 8), ("assistant", 15))
    return {"messages": [{"role": role, "content": words(draw, count)} for role, count in turns]}


def preference(draw: random.Random, number: int) -> dict[str, Any]:
    return {"prompt": words(draw, 12), "chosen": words(draw, 25), "rejected": words(draw, 25)}


def plain(draw: random.Random, number: int) -> dict[str, Any]:
    return {"text": words(draw, 40)}


def pair(draw: random.Random, number: int) -> dict[str, Any]:
    return {"query": words(draw, 8), "positive": words(draw, 30)}


def question(draw: random.Random, number: int) -> dict[str, Any]:
    context = words(draw, 40)
    at = draw.randrange(20)
    return {"question": words(draw, 8), "context": context, "answer": context[at : at + 20].strip()}


def table(draw: random.Random, number: int) -> dict[str, Any]:
    numbers = {f"n{i}": round(draw.gauss(0, 1), 3) for i in range(6)}
    return numbers | {"kind": draw.choice("abcdef"), "note": words(draw, 8), "label": ("stays", "leaves")[number % 2]}


Make = Callable[[random.Random, int], dict[str, Any]]
CASES: dict[str, tuple[Make, dict[str, Any]]] = {
    "classify linear": (labelled, {"task": "classify", "method": "linear"}),
    "classify": (labelled, {"task": "classify", "method": "full"}),
    "classify auto": (table, {"task": "classify", "model": "auto"}),
    "embed": (pair, {"task": "embed"}),
    "rerank": (pair, {"task": "rerank"}),
    "reader": (question, {"task": "reader"}),
    "cpt": (plain, {"task": "cpt"}),
    "sft-instruct": (instruct, {"task": "sft-instruct"}),
    "sft-chat": (chat, {"task": "sft-chat"}),
    "dpo": (preference, {"task": "dpo"}),
}


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Rows in the format that the file's name tells."""
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows, ensure_ascii=False))
    elif file.suffix == ".csv":
        with file.open("w", newline="") as out:
            table = csv.DictWriter(out, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def measure(case: str, rows: list[dict[str, Any]], form: str, folder: Path, context: int = 1024) -> dict[str, Any]:
    from app import _find_pii
    from finetune.recipe import load_recipe
    from finetune.validate import validate
    from tests.finetune.tiny import bert, llama

    file = folder / f"{case.replace(' ', '-')}.{form}"
    write(file, rows)
    keys: dict[str, Any] = CASES[case][1] | {"name": "bench", "data": {"train": str(file)}}
    if keys["task"] in ("cpt", "sft-instruct", "sft-chat", "dpo"):
        base = folder / "llama"
        keys |= {"base_model": str(base if base.exists() else llama(base, template=True)), "context_length": context}
    elif keys.get("method") != "linear" and "model" not in keys:
        base = folder / "bert"
        keys |= {"base_model": str(base if base.exists() else bert(base)), "max_length": min(512, max(32, context // 4))}
    if keys.get("model") == "auto":
        keys["data"] |= {"label_column": "label", "text_column": "note"}
    recipe = load_recipe(keys)
    validate(load_recipe(keys | {"data": keys["data"] | {"train": str(folder / f"few.{form}")}}), _find_pii)  # imports
    began, used = time.perf_counter(), time.process_time()
    report = validate(recipe, _find_pii)
    seconds, used = time.perf_counter() - began, time.process_time() - used
    file.unlink()
    told = {"rows_per_minute": round(60 * report.rows / seconds), "by_processor": round(60 * report.rows / used)}
    return told | {"found": dict(report.as_dict()["counts"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument(
        "--context", type=int, default=1024, help="Tokens that language models read; a short one has rows cut off."
    )
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = parser.parse_args()
    told: dict[str, dict[str, Any]] = {}
    print(f"{'rows a minute':16}" + "".join(f"{form:>24}" for form in options.formats))
    with tempfile.TemporaryDirectory() as name:
        for case in options.cases:
            draw = random.Random(0)
            rows = [CASES[case][0](draw, number) for number in range(options.rows)]
            rows[1::1000] = rows[::1000]
            forms = [form for form in options.formats if (case, form) not in (("sft-chat", "csv"), ("classify auto", "json"))]
            for form in forms:  # chats are no CSV, tables no JSON array
                write(Path(name) / f"few.{form}", rows[2:50])
                told.setdefault(case, {})[form] = measure(case, rows, form, Path(name), options.context)
            shown = [told[case].get(form) for form in options.formats]
            cells = [f"{each['rows_per_minute']:,} ({each['by_processor']:,})" if each else "" for each in shown]
            print(f"{case:16}" + "".join(f"{cell:>24}" for cell in cells), flush=True)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
