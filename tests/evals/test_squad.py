from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.data import load_dataset
from evals.squad import SquadError, convert, main


def question(number: int, *answers: str, **extra: object) -> dict[str, object]:
    return {
        "id": f"q{number}",
        "question": f"Question {number}?",
        "answers": [{"text": a, "answer_start": 0} for a in answers],
        **extra,
    }


def write(folder: Path, data: object = None) -> Path:
    path = folder / "squad.json"
    two = {"title": "Super_Bowl/50", "paragraphs": [
        {"context": "One.", "qas": [question(1, "long answer", "answer", "answer"), question(2, "b", "aa", "a")]},
        {"context": "Two.", "qas": [question(3, "c")]},
    ]}  # fmt: skip
    one = {"title": "super bowl 50", "paragraphs": [
        {"context": "Three.", "qas": [question(3, "d"), question(5, is_impossible=True)]},
        {"context": "Four.", "qas": [question(6, "e")]},
    ]}  # fmt: skip
    path.write_text(json.dumps({"data": [two, one]} if data is None else data))
    return path


def test_documents_and_rows(tmp_path: Path) -> None:
    made = convert(write(tmp_path), tmp_path / "out")
    assert (made.documents, made.questions, made.unanswerable) == (4, 6, 1)
    rows = load_dataset(tmp_path / "out" / "dataset.jsonl").rows
    assert (rows[0].id, rows[0].expected_facts, rows[0].expected_sources) == ("q1", ("answer",), ("super-bowl-50/01.md",))
    assert rows[1].expected_facts == ("b",)
    assert [row.id for row in rows[2:4]] == ["q3", "q3-2"]
    assert rows[4].unanswerable
    for row in rows:
        for source in row.expected_sources:
            assert (tmp_path / "out" / "documents" / source).is_file()
    assert (tmp_path / "out/documents/super-bowl-50-2/01.md").read_text() == "# super bowl 50\n\nThree.\n"


@pytest.mark.parametrize(("by", "left", "unanswerable"), [("paragraph", ["One.", "Three."], 3), ("article", ["One.", "Two."], 3)])
def test_what_is_held_out_cannot_be_answered(tmp_path: Path, by: str, left: list[str], unanswerable: int) -> None:
    made = convert(write(tmp_path), tmp_path / "out", holdout=2, by=by)  # pyright: ignore[reportArgumentType]
    texts = sorted(file.read_text().split("\n\n")[1].strip() for file in (tmp_path / "out").rglob("*.md"))
    assert texts == sorted(left)
    assert made.unanswerable == unanswerable
    rows = load_dataset(tmp_path / "out" / "dataset.jsonl").rows
    assert sum(bool(row.unanswerable) for row in rows) == unanswerable


def test_a_second_conversion_replaces_the_first_but_nothing_else(tmp_path: Path) -> None:
    source, out = write(tmp_path), tmp_path / "out"
    convert(source, out)
    convert(source, out, holdout=2)
    assert len(list(out.rglob("*.md"))) == 2
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(SquadError, match="holds other files"):
        convert(source, mine)
    assert (mine / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize("data", [[], {}, {"data": [{"paragraphs": [{}]}]}, {"data": []}, "text", {"data": 3}])
def test_other_json_is_refused_and_nothing_written(tmp_path: Path, data: object) -> None:
    with pytest.raises(SquadError, match=r"squad\.json"):
        convert(write(tmp_path, data), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path)
    assert main([str(source), str(tmp_path / "out"), "--holdout", "2"]) == 0
    assert "3 of them unanswerable" in capsys.readouterr().out
    assert main([str(source), str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 4
    assert main([str(source), str(tmp_path / "out"), "--holdout", "1"]) == 2
    assert main([str(tmp_path / "none.json"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("error: ") == 2
