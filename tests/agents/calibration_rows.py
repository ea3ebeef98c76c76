"""Rows for `agents.calibrate`, searched with the real indexes: `python -m tests.agents.calibration_rows DATA OUT.jsonl`.

DATA holds `qa/xquad`, `qa/nomiracl-en` and `docs`. Unanswerable rows are XQuAD questions without their paragraph, without
their article, and asked of other documents; and the questions of NoMIRACL that its assessors found no answer to.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine

from retrieval.embed import Encoder
from retrieval.index import Indexes
from retrieval.types import Passage

K = 5
PROJECTS = ("delta-rs", "pydantic-ai", "unitycatalog")


def name_of(project: str) -> str:
    return project.replace("-", "_")


def row(question: str, passages: list[Passage], answers: list[str], answerable: bool, group: str, name: str) -> dict[str, Any]:
    return {
        "question": question,
        "passages": [p.to_dict() for p in passages[:K]],
        "answers": answers,
        "answerable": answerable,
        "group": group,
        "set": name,
    }


def xquad(data: Path, folder: Path, indexes: Indexes) -> Iterator[dict[str, Any]]:
    articles = json.loads((data / "qa/xquad/xquad.en.json").read_text(encoding="utf-8"))["data"]
    folder.mkdir()
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(article["paragraphs"]):
            (folder / f"{a:02}-{p}.txt").write_text(paragraph["context"], encoding="utf-8")
    indexes.add("xquad", folder)
    indexes.sync("xquad")
    count = 0
    for a, article in enumerate(articles):
        for p, paragraph in enumerate(article["paragraphs"]):
            for qa in paragraph["qas"]:
                question, group = qa["question"], f"xquad-{a}"
                found = indexes.search("xquad", question, k=30)
                yield row(question, found, [x["text"] for x in qa["answers"]], True, group, "xquad")
                without = [f for f in found if f.source != f"{a:02}-{p}.txt"]
                yield row(question, without, [], False, group, "xquad without paragraph")
                without = [f for f in found if not f.source.startswith(f"{a:02}-")]
                yield row(question, without, [], False, group, "xquad without article")
                if count % 4 == 0:
                    project = PROJECTS[count // 4 % 3]
                    yield row(question, indexes.search(name_of(project), question, k=K), [], False, group, "foreign")
                count += 1


def docs(questions: Path, indexes: Indexes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(questions.read_text(encoding="utf-8").splitlines()):
        asked = json.loads(line)
        question, project, answerable = asked["question"], asked["project"], not asked["unanswerable"]
        found = indexes.search(name_of(project), question, k=K)
        yield row(question, found, asked["expected_facts"], answerable, f"docs-{number}", "docs")
        if answerable:
            other = PROJECTS[(PROJECTS.index(project) + 1) % 3]
            yield row(
                question, indexes.search(name_of(other), question, k=K), [], False, f"docs-{number}", "docs of another project"
            )


def nomiracl(data: Path, encoder: Encoder) -> Iterator[dict[str, Any]]:
    for kind, answerable in (("relevant", True), ("non_relevant", False)):
        for line in (data / f"qa/nomiracl-en/en.{kind}.jsonl").read_text(encoding="utf-8").splitlines():
            asked = json.loads(line)
            prompt = asked["prompt"]
            question = prompt.split("QUESTION:\n")[1].split("\n\nCONTEXTS:")[0].strip()
            contexts = prompt.split("CONTEXTS:\n", 1)[1].rsplit("\n\nOUTPUT:", 1)[0]
            passages = []
            for number, context in enumerate(re.split(r"(?:^|\n\n)\[\d+\] ", contexts)[1:]):
                title, _, text = context.partition(": ")
                name = f"{asked['query_id']}-{number}"
                passages.append(Passage(name, name, "nomiracl", name, title, (), text, 0, len(text)))
            vectors = encoder.embed([question, *(f"{p.title}\n{p.text}" for p in passages)])
            found = [
                replace(p, similarity=float(s), score=float(s)) for p, s in zip(passages, vectors[1:] @ vectors[0], strict=True)
            ]
            found.sort(key=lambda p: -p.similarity)
            yield row(question, found, [], answerable, f"nomiracl-{asked['query_id']}", "nomiracl")


def main(data: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        encoder = Encoder.load(home / "models")
        indexes = Indexes(create_engine(f"sqlite:///{home}/smalti.db"), home / "chroma", encoder)
        for project in PROJECTS:
            indexes.add(name_of(project), data / "docs" / project)
            indexes.sync(name_of(project))
        with out.open("w", encoding="utf-8") as file:
            for made in (
                *docs(Path(__file__).parent / "data" / "docs_questions.jsonl", indexes),
                *xquad(data, home / "xquad", indexes),
                *nomiracl(data, encoder),
            ):
                file.write(json.dumps(made, ensure_ascii=False) + "\n")
        indexes.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
