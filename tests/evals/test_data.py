from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from evals.data import Prediction, Row, RowResult, load_dataset
from evals.errors import DatasetError


def write(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_full_row_is_read_and_the_file_hashed(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"id": "a", "question": "Who?", "expected_facts": ["x", "y"], "expected_sources": ["d/a.md"], "topic": "t"},
        "",
        {"question": "What?", "unanswerable": True, "expected_facts": None},
    )
    dataset = load_dataset(path)
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(dataset) == 2
    assert dataset.rows[0] == Row("a", "Who?", ("x", "y"), ("d/a.md",), None, 1, {"topic": "t"})
    assert (dataset.rows[1].unanswerable, dataset.rows[1].line) == (True, 3)


def test_ids_stay_when_lines_move_and_equal_rows_get_their_own(tmp_path: Path) -> None:
    one, two = {"question": "Who?"}, {"question": "What?"}
    first = [row.id for row in load_dataset(write(tmp_path, one, two, one))]
    second = [row.id for row in load_dataset(write(tmp_path, two, one, one))]
    assert first[0] == second[1]
    assert first[1] == second[0]
    assert len(set(first)) == 3


def test_byte_order_mark_windows_lines_and_line_separators_inside_strings(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('\ufeff{"question": "a\u2028b"}\r\n{"question": "c"}'.encode())
    assert [row.question for row in load_dataset(path)] == ["a\u2028b", "c"]


@pytest.mark.parametrize(
    ("line", "key", "said"),
    [
        ("{nope", None, "is not JSON"),
        ("[", None, "looks like a JSON array"),
        ("question,expected_facts\nWhy?,x", None, "from CSV"),
        ('{"inputs": {"x": 1}, "target": NaN}', None, "NaN is no JSON"),
        ('{"question": "a", "metadata": {"x": -Infinity}}', None, "-Infinity is no JSON"),
        ('"text"', None, "is a string, not an object"),
        ("{}", "question", "is missing"),
        ('{"question": 3}', "question", "is a number, not a string"),
        ('{"question": "  "}', "question", "is empty"),
        ('{"question": "q", "question": "r"}', "question", "is given twice"),
        ('{"question": "q", "expected_facts": "f"}', "expected_facts", 'write "expected_facts": ["…"]'),
        ('{"question": "q", "expected_sources": [1]}', "expected_sources", "element 1 is a number"),
        ('{"question": "q", "expected_facts": ["a", ""]}', "expected_facts", "element 2 is empty"),
        ('{"question": "q", "unanswerable": "yes"}', "unanswerable", "not true or false"),
        ('{"question": "q", "unanswerable": true, "expected_facts": ["f"]}', "unanswerable", "remove one of the two"),
        ('{"question": "q", "unanswerble": true}', "unanswerble", "did you mean 'unanswerable'?"),
        ('{"question": "q", "expected_fact": ["f"]}', "expected_fact", "did you mean 'expected_facts'?"),
        ('{"question": "q", "id": true}', "id", "is a boolean, not a name"),
        ("[" * 100_000, None, "nested too deeply"),
    ],
)
def test_a_wrong_row_is_named_by_file_line_key_and_fix(tmp_path: Path, line: str, key: str | None, said: str) -> None:
    with pytest.raises(DatasetError) as caught:
        load_dataset(write(tmp_path, line))
    error = caught.value
    assert (error.line, error.key) == (1, key)
    assert said in str(error)
    assert f"{tmp_path / 'rows.jsonl'}, line 1" in str(error)
    assert "\n" not in str(error)


def test_duplicate_ids_name_both_lines(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"line 3, key 'id': '7' is already the id of line 1"):
        load_dataset(write(tmp_path, {"id": 7, "question": "a"}, {"question": "b"}, {"id": "7", "question": "c"}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no rows"),
        (b"\n \n", "holds no rows"),
        ('{"question": "q"}'.encode("utf-16"), "save it as UTF-8"),
        (b'{"question": "q"}\n{"question": "\xe9"}', "line 2: byte 15 is not UTF-8"),
    ],
)
def test_a_wrong_file(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=said):
        load_dataset(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DatasetError, match="cannot be read"):
            load_dataset(path)


def test_a_result_survives_json() -> None:
    result = RowResult(Row("a", "q", ("f",), ("s",), False, 3, {"k": 1}), Prediction("t", ("s",), False, 1.5, "r", "t", None))
    assert RowResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_expectations_of_every_kind_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"inputs": {"text": "fine"}, "target": "joy"},
        {"inputs": {"x": 1}, "target": 2},
        {"question": "q", "expected_schema": {"type": "object"}, "expected_tools": [], "expected_pattern": "a+", "group": "g"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two, three = load_dataset(path)
    assert (one.asked, one.target, one.question) == ({"text": "fine"}, "joy", '{"text": "fine"}')
    assert (two.target, three.expected_tools, three.cluster, one.expected_tools) == (2, (), "g", None)
    assert len({one.id, two.id, three.id}) == 3
    for bad, said in (
        ({"inputs": []}, "not an object"),
        ({"question": "q", "expected_schema": {"type": "objekt"}}, "no JSON schema"),
        ({"question": "q", "expected_pattern": "("}, "no regular expression"),
        ({"question": "q", "target": [1]}, "not a label or a number"),
        ({"question": "q", "expected_route": 3}, "not a string"),
    ):
        path.write_text(json.dumps(bad))
        with pytest.raises(DatasetError, match=said):
            load_dataset(path)


def test_a_row_in_mlflows_shape_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"inputs": {"question": "A?"}, "expectations": {"expected_response": "b", "expected_facts": ["c"]}},
        {"inputs": {"text": "so glad"}, "expectations": {"target": "joy"}},
        {"inputs": {"question": "D?"}},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second, third = load_dataset(path)
    assert (first.asked, first.expected_answer, first.expected_facts, first.metadata) == ("A?", "b", ("c",), {})
    assert (second.asked, second.target) == ({"text": "so glad"}, "joy")
    assert third.asked == {"question": "D?"}, "a classical model's column may be called so"
    path.write_text(json.dumps({"inputs": {"question": "A?"}, "expectations": {"expected_fact": ["c"]}}))
    with pytest.raises(DatasetError, match="did you mean 'expected_facts'"):
        load_dataset(path)
