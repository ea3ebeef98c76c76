"""SQuAD-format JSON to a folder of documents and an evaluation dataset: `python -m evals.squad xquad.en.json OUT --holdout 5`.

Each paragraph becomes one Markdown file, `OUT/documents/ARTICLE/NN.md`; each question a row of `OUT/dataset.jsonl` with the
answer as expected fact and the paragraph's file as expected source. With `--holdout N` every Nth paragraph (or article,
`--by article`) gets no file, so its questions are unanswerable from the documents. Held-out paragraphs leave their article's
others behind: those are hard negatives, about the same subject.

The format: https://rajpurkar.github.io/SQuAD-explorer/ (1.1 and 2.0, XQuAD, MLQA).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import sys
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

_MANIFEST = "manifest.json"


class SquadError(ValueError):
    """A file that is not SQuAD-format JSON, or a folder that must not be written to. One line."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion made; also kept in `OUT/manifest.json`."""

    source: str
    sha256: str
    holdout: int
    by: str
    documents: int
    questions: int
    unanswerable: int


def convert(source: Path, out: Path, *, holdout: int = 0, by: Literal["paragraph", "article"] = "paragraph") -> Converted:
    """Write `out/documents/…`, `out/dataset.jsonl` and `out/manifest.json`; an earlier conversion in `out` is replaced.

    `holdout`: leave out the document of every Nth paragraph or article (0: none; else at least 2). Raises `SquadError`.
    """
    if holdout < 0 or holdout == 1:
        raise SquadError(f"holdout {holdout}: give 0 for none or 2 and more for every Nth")
    try:
        data = source.read_bytes()
        articles = json.loads(data.decode("utf-8-sig"))["data"]
        rows, documents = _rows(articles, holdout, by)
    except OSError as error:
        raise SquadError(f"{source}: cannot be read ({error.strerror}); give the path of a SQuAD-format JSON file") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise SquadError(f"{source}: is not SQuAD-format JSON ({type(error).__name__}: {error})") from error
    if not rows or not documents:
        left = f"leaves {len(rows)} questions and {len(documents)} documents"
        raise SquadError(f"{source}: {left}; give another file or a larger holdout")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / _MANIFEST).is_file())):
        raise SquadError(f"{out}: holds other files; give a new folder")

    shutil.rmtree(out / "documents", ignore_errors=True)
    for path, text in documents.items():
        file = out / "documents" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (out / "dataset.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    unanswerable = sum(row.get("unanswerable", False) for row in rows)
    converted = Converted(source.name, hashlib.sha256(data).hexdigest(), holdout, by, len(documents), len(rows), unanswerable)
    (out / _MANIFEST).write_text(json.dumps(asdict(converted), indent=2) + "\n", encoding="utf-8")
    return converted


def _rows(articles: Sequence[Mapping[str, Any]], holdout: int, by: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    rows: list[dict[str, Any]] = []
    documents: dict[str, str] = {}
    folders: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    paragraph_number = 0
    for article_number, article in enumerate(articles, start=1):
        title = str(article.get("title") or f"Article {article_number}").replace("_", " ")
        folder = _slug(title)
        folders[folder] += 1
        if folders[folder] > 1:
            folder = f"{folder}-{folders[folder]}"
        for place, paragraph in enumerate(article["paragraphs"], start=1):
            paragraph_number += 1
            held_out = holdout > 0 and (paragraph_number if by == "paragraph" else article_number) % holdout == 0
            path = f"{folder}/{place:02d}.md"
            if not held_out:
                documents[path] = f"# {title}\n\n{paragraph['context'].strip()}\n"
            for question in paragraph["qas"]:
                row: dict[str, Any] = {"id": str(question["id"]), "question": question["question"].strip()}
                seen[row["id"]] += 1
                if seen[row["id"]] > 1:
                    row["id"] = f"{row['id']}-{seen[row['id']]}"
                answers = Counter(answer["text"].strip() for answer in question["answers"])
                if held_out or question.get("is_impossible") or not answers:
                    row["unanswerable"] = True
                else:
                    # Several answers are ways to say the same: take the most frequent one, of those the shortest.
                    best = min(answers, key=lambda text: (-answers[text], len(text)))
                    row["expected_facts"], row["expected_sources"] = [best], [path]
                rows.append(row)
    return rows, documents


def _slug(title: str) -> str:
    plain = unicodedata.normalize("NFKC", title).lower()
    return re.sub(r"[^\w]+", "-", plain).strip("-_")[:60] or "article"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evals.squad", description="SQuAD-format JSON to documents and a dataset.")
    parser.add_argument("source", type=Path, help="the SQuAD-format JSON file")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--holdout", type=int, default=0, metavar="N", help="leave out every Nth document (default: none)")
    parser.add_argument("--by", choices=("paragraph", "article"), default="paragraph", help="what is left out")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")
    options = parser.parse_args(arguments)
    try:
        made = convert(options.source, options.out, holdout=options.holdout, by=options.by)
    except (SquadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(asdict(made)))
    else:
        print(f"{made.documents} documents in {options.out / 'documents'}")
        print(f"{made.questions} questions, {made.unanswerable} of them unanswerable, in {options.out / 'dataset.jsonl'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
