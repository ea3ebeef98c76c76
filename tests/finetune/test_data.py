"""Every defect is found, by file, line, column and fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.data import DataError, Problem, check_split, read_labelled, sample

GOOD = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(6)]


def write(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


def errors(path: Path, **options: Any) -> list[Problem]:
    with pytest.raises(DataError) as caught:
        read_labelled(path, **options)
    return [problem for problem in caught.value.problems if problem.severity == "error"]


@pytest.mark.parametrize(
    ("row", "code", "column", "fix"),
    [
        ({"text": "x"}, "missing_key", "label", "data.label_column"),
        ({"txt": "x", "label": "a"}, "missing_key", "text", "Rename 'txt'"),
        ({"text": "x", "label": "a", "id": 1}, "unknown_key", "id", "data.ignore_columns"),
        ({"text": " ", "label": "a"}, "empty_text", "text", "delete"),
        ({"text": "x", "label": ""}, "empty_label", "label", "Fill"),
        ({"text": 5, "label": "a"}, "wrong_type", "text", "string"),
        ({"text": "x", "label": None}, "wrong_type", "label", "string"),
        (["x"], "not_object", None, "text"),
        (b'{"text": "x", ', "bad_json", None, "object"),
        (b'{"text": "caf\xe9", "label": "a"}', "encoding", None, "UTF-8"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, code: str, column: str | None, fix: str) -> None:
    path = write(tmp_path / "data.jsonl", *GOOD, row)
    (problem,) = errors(path)
    assert (problem.code, problem.line, problem.column, problem.file) == (code, 7, column, str(path))
    assert fix in problem.fix
    assert f"{path}:7" in str(problem)


def test_an_unknown_label_gets_a_suggestion(tmp_path: Path) -> None:
    rows = [{"text": "x", "label": "positive"}, {"text": "y", "label": "negative"}, {"text": "z", "label": "postive"}]
    (problem,) = errors(write(tmp_path / "d", *rows), labels=["positive", "negative"])
    assert (problem.code, problem.line) == ("unknown_label", 3)
    assert "'positive'" in problem.fix


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    found = errors(write(tmp_path / "d", *GOOD, {"text": "x"}, b"nonsense", {"label": "a"}))
    assert [(p.line, p.code) for p in found] == [(7, "missing_key"), (8, "bad_json"), (9, "missing_key")]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_file"),
        (b'{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}', "one_class"),
        ("x".encode("utf-16"), "encoding"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "d").write_bytes(content)
    assert errors(tmp_path / "d")[0].code == code
    assert errors(tmp_path / "missing")[0].code == "unreadable"


def test_repeats_and_skew_are_warned_of_and_left_out(tmp_path: Path) -> None:
    rows = [
        *GOOD,
        {"text": "Text  0", "label": "a"},
        {"text": "text 1", "label": "a"},
        *({"text": f"m{i}", "label": "a"} for i in range(90)),
    ]
    data = read_labelled(write(tmp_path / "d", *rows))
    assert [(w.code, w.line) for w in data.warnings] == [("duplicate_row", 7), ("conflicting_label", 8), ("label_skew", None)]
    assert data.counts == {"a": 93, "b": 3}


def test_a_bom_other_columns_and_labels_that_are_numbers_are_fine(tmp_path: Path) -> None:
    path = write(tmp_path / "d", b'\xef\xbb\xbf{"t": "x", "y": 1, "id": 3}', b"", b'{"t": "z", "y": 0}\r')
    data = read_labelled(path, text="t", label="y", ignore=["id"])
    assert [(row.text, row.label, row.line) for row in data.rows] == [("x", "1", 1), ("z", "0", 3)]


def test_leakage_and_labels_only_the_evaluation_has(tmp_path: Path) -> None:
    train, held_out = (
        write(tmp_path / "train", *GOOD),
        write(tmp_path / "eval", {"text": "TEXT 3", "label": "b"}, {"text": "new", "label": "c"}),
    )
    with pytest.raises(DataError) as caught:
        check_split(read_labelled(train), train, read_labelled(held_out), held_out)
    assert [(p.code, p.line) for p in caught.value.problems] == [("leakage", 1), ("unknown_label", 2)]
    assert f"{train}:4" in caught.value.problems[0].message


def test_a_sample_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    rows = read_labelled(write(tmp_path / "d", *GOOD)).rows
    assert sample(rows, 3, 1) == sample(rows, 3, 1)
    assert len(sample(rows, 3, 1)) == 3
    assert sample(rows, None, 1) == list(rows)


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"PAR1xxxx\nPAR1", "unreadable", "Parquet"),
        (b"\x1f\x8b\x08\x00abc\n", "bad_json", "compressed"),
        ('{"text": "a"}\n{"text": "b"}\n'.encode("utf-16-le"), "encoding", "UTF-16"),
        (b'{\n "text": "a",\n "label": "b"\n}\n', "bad_json", "several lines"),
    ],
)
def test_a_file_of_another_format_is_told_once(tmp_path: Path, content: bytes, code: str, says: str) -> None:
    file = write(tmp_path / "rows.jsonl", content)
    with pytest.raises(DataError) as raised:
        read_labelled(file)
    [problem] = raised.value.problems
    assert (problem.code, problem.line) == (code, 1)
    assert says in problem.message


ROWS = [("one\nand two", "a", 2), ("say \u201cyes\u201d, or", "b", 4), ("three", "a", 5), ("four", "b", 6)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", '\ufefftext,label\r\n"one\nand two",a\r\n"say \u201cyes\u201d, or",b\r\nthree,a\r\nfour,b\r\n'),
        ("rows.tsv", 'text\tlabel\n"one\nand two"\ta\nsay \u201cyes\u201d, or\tb\nthree\ta\n\nfour\tb'),
        ("rows.csv", 'label;text\na;"one\nand two"\nb;say \u201cyes\u201d, or\na;three\nb;four\n'),
        ("rows.json", None),
        ("rows.parquet", None),
    ],
)
def test_the_files_that_others_have(tmp_path: Path, name: str, content: str | None) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content.encode())
    elif name.endswith("parquet"):
        import pandas as pd

        pd.DataFrame([{"text": text, "label": label} for text, label, _ in ROWS]).to_parquet(file)
    else:
        file.write_text(json.dumps([{"text": text, "label": label} for text, label, _ in ROWS], indent=1))
    rows = read_labelled(file).rows
    assert [(row.text, row.label) for row in rows] == [(text, label) for text, label, _ in ROWS]
    lines = {"rows.json": [2, 6, 10, 14], "rows.parquet": [1, 2, 3, 4], "rows.tsv": [2, 4, 5, 7]}
    assert [row.line for row in rows] == lines.get(name, [2, 4, 5, 6])


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.csv", b"text,label\nx,a\ny\nz,b,c\nw,b\n", [("ragged_row", 3), ("ragged_row", 4)]),
        ("a.csv", b'text,label\nx,a\n"y"y,b\nw,b\n', [("bad_csv", 3)]),
        ("a.csv", b'text,label\nx,a\nw,b\n"y,b\n', [("bad_csv", 4)]),
        ("a.csv", b"text,text\nx,a\n", [("duplicate_key", 1), ("missing_key", 2)]),
        ("a.csv", b"text,label\nx,a\ncaf\xe9,b\n", [("encoding", 3)]),
        ("a.csv", b"text,label\nx,a\nw\0,b\n", [("encoding", 3)]),
        ("a.json", b'[\n{"text": "x", "label": "a"},\n{"text": "y" "label": "b"}]', [("bad_json", 3)]),
        ("a.json", b'[{"text": "x", "label": "a"},\n{"text": "y", "label": "b"}', [("bad_json", 2)]),
        (
            "a.json",
            b'[{"text": "x", "label": "a"},\n5,\n{"text": "y", "label": "b", "label": "a"}]',
            [("not_object", 2), ("duplicate_key", 3)],
        ),
    ],
)
def test_what_is_wrong_with_the_files_that_others_have(
    tmp_path: Path, name: str, content: bytes, found: list[tuple[str, int]]
) -> None:
    told = [(each.code, each.line) for each in errors(write(tmp_path / name, content))]
    assert [each for each in told if each[0] != "one_class"] == found


def test_what_looks_the_same_is_the_same(tmp_path: Path) -> None:
    rows = [
        *GOOD,
        {"text": "text\u200b 0", "label": "a"},
        {"text": "\uff54ext 1", "label": "b"},
        {"text": "x", "label": "a\u200b"},
    ]
    found = [(each.code, each.line) for each in read_labelled(write(tmp_path / "d", *rows)).warnings]
    assert found == [("duplicate_row", 7), ("duplicate_row", 8), ("similar_label", 9), ("rare_label", 9)]


def test_labels_that_no_row_has_and_values_that_are_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "d", *GOOD, {"text": "NaN", "label": "a"})
    warned = read_labelled(path, labels=["a", "b", "c"]).warnings
    assert [(each.code, each.line) for each in warned] == [("missing_value", 7), ("missing_label", None)]
    assert "'c'" in warned[1].message
