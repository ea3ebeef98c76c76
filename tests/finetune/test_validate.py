"""Every seeded defect is found, where it was put, and nothing else is."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, cast

import pytest

from app import _find_pii
from finetune.job_language import LanguageJob
from finetune.recipe import LanguageRecipe, RecipeError, load_recipe
from finetune.validate import Report, validate
from tests.finetune.tiny import bert, llama

LABELS = ("good", "bad")
ROWS = 1500
Defect = tuple[str, Any]
CLASSIFY: tuple[Defect, ...] = (
    ("missing_key", lambda row: {"text": row["text"]}),
    ("missing_key", lambda row: {"txt": row["text"], "label": row["label"]}),
    ("unknown_key", lambda row: row | {"id": 7}),
    ("empty_text", lambda row: row | {"text": " "}),
    ("empty_label", lambda row: row | {"label": ""}),
    ("wrong_type", lambda row: row | {"text": 5}),
    ("wrong_type", lambda row: row | {"label": None}),
    ("unknown_label", lambda row: row | {"label": "goood"}),
    ("not_object", lambda row: [row["text"]]),
    ("bad_json", lambda row: b'{"text": "x", '),
    ("encoding", lambda row: b'{"text": "caf\xe9", "label": "good"}'),
    ("encoding", lambda row: row | {"text": row["text"] + " caf\ufffd"}),
    ("encoding", lambda row: row | {"text": row["text"] + "\0"}),
    ("encoding", lambda row: b"\xef\xbb\xbf" + json.dumps(row).encode()),
    ("duplicate_key", lambda row: json.dumps(row).replace("{", '{"text": "x", ', 1).encode()),
    ("duplicate_key", lambda row: b'{"label" : "good" , "text" : "a \\":b", "l\\u0061bel" : "bad"}'),
    ("bad_json", lambda row: json.dumps(row).encode() * 2),
    ("bad_json", lambda row: json.dumps(row).encode().replace(b"film", b"fi\0lm")),
    ("bad_json", lambda row: json.dumps(row).encode().replace(b"film", b"\\ud800")),
    ("bad_json", lambda row: json.dumps(row).encode()[:-9]),
    ("bad_json", lambda row: b"[" * 2000),
    ("empty_text", lambda row: row | {"text": "\u200b \u200b\ufeff"}),
    ("wrong_type", lambda row: row | {"text": {"text": row["text"]}}),
    ("wrong_type", lambda row: row | {"label": True}),
    ("unknown_label", lambda row: row | {"label": "good "}),
    ("encoding", lambda row: row | {"text": row["text"] + " caf\u00c3\u00a9"}),
    ("encoding", lambda row: row | {"text": row["text"] + " it\u00e2\u20ac\u2122s"}),
    ("encoding", lambda row: row | {"text": row["text"] + "\x1b[0m"}),
    ("pii", lambda row: row | {"text": row["text"] + " write to jo.doe@example.com"}),
    ("pii", lambda row: row | {"text": row["text"] + " my card is 4111 1111 1111 1111"}),
)
INSTRUCT: tuple[Defect, ...] = (
    ("missing_key", lambda row: {"prompt": row["prompt"]}),
    ("wrong_type", lambda row: row | {"response": 3}),
    ("empty_prompt", lambda row: row | {"prompt": ""}),
    ("empty_response", lambda row: row | {"response": "\n"}),
    ("all_masked", lambda row: row | {"prompt": row["prompt"] * 20}),
    ("bad_json", lambda row: b"prompt: x"),
    ("wrong_type", lambda row: row | {"response": [row["response"]]}),
    ("empty_response", lambda row: row | {"response": " \t\u200b"}),
    ("duplicate_key", lambda row: json.dumps(row).replace("{", '{"response": "no", ', 1).encode()),
    ("special_token", lambda row: row | {"response": row["response"] + "</s>"}),
    ("same_text", lambda row: row | {"response": f" {row['prompt'].upper()}"}),
    ("missing_value", lambda row: row | {"prompt": "NaN"}),
    ("pii", lambda row: row | {"response": "ask jo.doe@example.com"}),
)


def chat(row: dict[str, str]) -> dict[str, Any]:
    turns = (("user", row["prompt"]), ("assistant", row["response"]))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


SYSTEM = {"role": "system", "content": "Be short."}


def message(row: dict[str, Any], number: int, **changes: Any) -> dict[str, Any]:
    messages = [dict(each) for each in row["messages"]]
    messages[number] |= changes
    return {"messages": [{k: v for k, v in each.items() if v is not None} for each in messages]}


CHAT: tuple[Defect, ...] = (
    ("missing_key", lambda row: {"chat": row["messages"]}),
    ("wrong_type", lambda row: {"messages": []}),
    ("missing_role", lambda row: message(row, 0, role=None)),
    ("unknown_role", lambda row: message(row, 1, role="bot")),
    ("empty_content", lambda row: message(row, 1, content="")),
    ("chat_template", lambda row: message(row, 1, content=None, tool_calls=[{"function": {"name": "f"}}])),
    ("wrong_type", lambda row: message(row, 1, tool_calls=[{"name": "f"}])),
    ("wrong_type", lambda row: message(row, 1, tool_calls=[{"function": {"name": "f", "arguments": "{"}}])),
    ("wrong_type", lambda row: message(row, 1, weight=2)),
    ("all_masked", lambda row: message(row, 1, weight=0)),
    ("missing_role", lambda row: {"messages": [{"from": "human", "value": "a"}]}),
    ("role_order", lambda row: {"messages": row["messages"][1:] + row["messages"]}),
    ("role_order", lambda row: {"messages": [*row["messages"], row["messages"][1]]}),
    ("role_order", lambda row: {"messages": [*row["messages"], row["messages"][0]]}),
    ("wrong_type", lambda row: message(row, 0, content=[{"type": "text", "text": "hi"}])),
    ("unknown_role", lambda row: message(row, 0, role={"name": "user"})),
    ("duplicate_key", lambda row: json.dumps(row).replace('"role"', '"role": "user", "role"', 1).encode()),
    ("role_order", lambda row: {"messages": [SYSTEM, SYSTEM, *row["messages"]]}),
    ("role_order", lambda row: {"messages": [row["messages"][0], SYSTEM, row["messages"][1]]}),
    ("role_order", lambda row: {"messages": [row["messages"][0], {"role": "tool", "content": "9"}, row["messages"][1]]}),
    ("special_token", lambda row: message(row, 0, content="<s>" + row["messages"][0]["content"])),
    ("all_masked", lambda row: {"messages": row["messages"][:1]}),
    ("all_masked", lambda row: message(row, 0, content="why " * 40)),
    ("wrong_type", lambda row: {"messages": json.dumps(row["messages"])}),
    ("same_text", lambda row: message(row, 1, content=row["messages"][0]["content"].title())),
    ("pii", lambda row: message(row, 0, content=row["messages"][0]["content"] + " 4111 1111 1111 1111")),
)


def seeded(file: Path, rows: list[Any], defects: tuple[Defect, ...], seed: int) -> set[tuple[str, int]]:
    """Writes the rows with each defect at five lines of its own; where they are."""
    draw = random.Random(seed)
    lines = draw.sample(range(len(rows)), 5 * len(defects))
    put: set[tuple[str, int]] = set()
    for number, line in enumerate(lines):
        code, spoil = defects[number % len(defects)]
        rows[line] = spoil(rows[line])
        put.add((code, line + 1))
    file.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return put


def found(report: Report, file: Path) -> set[tuple[str, int]]:
    told = {(each.code, each.line) for each in report.problems if each.file == str(file) and each.line is not None}
    return {each for each in told if each[0] != "truncated"}  # told once, of the longest row


def labelled(prefix: str, count: int) -> list[Any]:
    return [{"text": f"{prefix} {i} film", "label": LABELS[i % 2]} for i in range(count)]


@pytest.mark.parametrize("method", ["linear", "full"])
def test_defects_in_labelled_rows(tmp_path: Path, method: str) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    rows = labelled("row", ROWS)
    put = seeded(train, rows, CLASSIFY, 1)
    known = [row for i, row in enumerate(rows) if (i + 1) not in {line for _, line in put}]
    evaluation = [*labelled("held", 40), *known[:3]]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in evaluation))
    base = {} if method == "linear" else {"base_model": str(bert(tmp_path / "base")), "max_length": 8}
    given = {"task": "classify", "method": method, "name": "x", "labels": LABELS}
    data = {"train": str(train), "eval": str(held_out)}
    report = validate(load_recipe({**given, **base, "data": data}), _find_pii)
    assert found(report, train) == put
    assert found(report, held_out) == {("leakage", 41), ("leakage", 42), ("leakage", 43)}
    assert ("truncated" in {each.code for each in report.problems}) == (method == "full")
    assert all(each.fix for each in report.problems)


@pytest.mark.parametrize(("task", "defects"), [("sft-instruct", INSTRUCT), ("sft-chat", CHAT)])
def test_defects_in_what_language_models_learn(tmp_path: Path, task: str, defects: tuple[Defect, ...]) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    plain: list[Any] = [{"prompt": f"what is {i}?", "response": f"it is {i}."} for i in range(ROWS)]
    rows = [chat(row) for row in plain] if task == "sft-chat" else plain
    whole, twice = rows[0], rows[-1]
    put = seeded(train, rows, defects, 2)
    assert (rows[0], rows[-1]) == (whole, twice), "another seed: the first and the last row are used below"
    with train.open("ab") as file:
        file.write(b"\n" + json.dumps(twice).encode())
    asked_again = message(whole, 1, content="no idea") if task == "sft-chat" else whole | {"response": "no idea"}
    held_out.write_text(json.dumps(asked_again) + "\n")
    given = {"task": task, "name": "x", "base_model": str(llama(tmp_path / "base", template=True)), "context_length": 100}
    report = validate(load_recipe({**given, "data": {"train": str(train), "eval": str(held_out)}}), _find_pii)
    assert found(report, train) == put | {("duplicate_row", ROWS + 1)}
    assert found(report, held_out) == {("leakage", 1)}


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (b'{"text": "a", "label": "x"}\r{"text": "b", "label": "y"}\r', "line_ends", 1),
        ('{"text": "a", "label": "x"}'.encode("utf-16"), "encoding", 1),
        ('{"text": "a", "label": "x"}'.encode("utf-16-be"), "encoding", 1),
        (b" \n\n", "empty_file", None),
        (b"", "empty_file", None),
        (b"text,label\na,x\nb,y\n", "bad_json", 1),
        (b"%PDF-1.7\n1 0 obj\n", "bad_json", 1),
    ],
)
def test_a_file_at_fault_is_told_once(tmp_path: Path, content: bytes, code: str, line: int | None) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    report = validate(load_recipe({"name": "x", "data": {"train": str(file)}}))
    assert [(problem.code, problem.line) for problem in report.problems] == [(code, line)]


def test_a_folder_of_texts_tells_what_of_it_is_not_read(tmp_path: Path) -> None:
    base, folder = llama(tmp_path / "base"), tmp_path / "texts"
    folder.mkdir()
    given = {"task": "cpt", "name": "x", "base_model": str(base), "data": {"train": str(folder)}}
    (folder / "A.TXT").write_bytes(b"\xef\xbb\xbfthe fox\r\n")
    (folder / "b.md").write_text("nan")
    (folder / "page.html").write_text("<p>a dog")
    (folder / "round").symlink_to(folder)
    recipe = load_recipe(given)
    told = {(Path(each.file).name, each.code, each.severity) for each in validate(recipe).problems}
    assert told == {("page.html", "not_read", "warning"), ("b.md", "missing_value", "warning")}
    read = LanguageJob(cast(LanguageRecipe, recipe))
    assert read._tokenizer.decode(read._texts[0].ids, skip_special_tokens=True) == "the fox\n"
    others = {"c.txt": b"PK\x03\x04 a workbook", "d.txt": "a dog".encode("utf-16-le"), "e.txt": b"%PDF-1.4\n"}
    for name, content in others.items():
        (folder / name).write_bytes(content)
    wrong = {Path(each.file).name for each in validate(recipe).problems if each.severity == "error"}
    assert wrong == set(others)


def test_labels_that_are_nearly_others(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    labels: list[Any] = ["good", "bad", "good ", "Bad", 1, "bad", 1]
    rows = [{"text": f"row {i}", "label": label} for i, label in enumerate(labels)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = validate(load_recipe({"name": "x", "data": {"train": str(file)}}))
    assert found(report, file) == {("similar_label", 3), ("similar_label", 4), ("mixed_labels", 5), ("mixed_labels", 7)} | {
        (code, line) for line in (1, 3, 4) for code in ("rare_label", "few_rows")
    }
    assert {each.code for each in report.problems if each.severity == "error"} == {"few_rows"}


def test_a_template_that_refuses_a_chat_is_quoted(tmp_path: Path) -> None:
    base, train, template = llama(tmp_path / "base"), tmp_path / "train.jsonl", tmp_path / "strict.jinja"
    template.write_text(
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    good = chat({"prompt": "a", "response": "b"})
    rows = [good, {"messages": [SYSTEM, *good["messages"]]}]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"task": "sft-chat", "name": "x", "base_model": str(base), "chat_template": str(template)}
    report = validate(load_recipe({**given, "data": {"train": str(train)}}))
    assert found(report, train) == {("chat_template", 2)}
    assert "roles must alternate" in report.summary()


def test_what_a_tokenizer_lacks(tmp_path: Path) -> None:
    base, train = llama(tmp_path / "base", template=True), tmp_path / "train.jsonl"
    train.write_text(json.dumps(chat({"prompt": "a", "response": "b"})) + "\n")
    given = {"task": "sft-chat", "name": "x", "base_model": str(base), "data": {"train": str(train)}}

    def codes(**changes: Any) -> set[str]:
        file = base / "tokenizer_config.json"
        before = file.read_text()
        file.write_text(json.dumps(json.loads(before) | changes))
        try:
            return {problem.code for problem in validate(load_recipe(given)).problems}
        finally:
            file.write_text(before)

    assert codes() == set()
    assert codes(pad_token="</s>") == {"pad_is_eos"}
    assert codes(eos_token=None) == {"no_eos"}
    template = tmp_path / "never.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    endless = validate(load_recipe({**given, "chat_template": str(template)}))
    assert [(problem.code, problem.line) for problem in endless.problems] == [("no_eos", 1)]
    config = base / "config.json"
    whole = json.loads(config.read_text())
    config.write_text(json.dumps(whole | {"vocab_size": 40}))
    assert codes() == {"unknown_tokens"}
    with pytest.raises(RecipeError, match=r"its tokenizer writes token \d+, and the model knows 40"):
        LanguageJob(cast(LanguageRecipe, load_recipe(given)))
    config.write_text(json.dumps(whole))
    (base / "chat_template.jinja").unlink()
    assert codes() == {"no_chat_template"}


def test_each_kind_is_spelled_out_a_few_times_and_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"nonsense"\n' * 3000)
    report = validate(load_recipe({"name": "x", "data": {"train": str(file)}}))
    assert (report.errors, len(report.problems)) == (3000, 1000)
    assert "and 2,995 more of [bad_json]" in report.summary()
    assert report.as_dict()["counts"] == {"bad_json": 3000}
