"""`model: auto` searches models for columns and for texts within its budget, and registers what it found like any other."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest

from finetune.data import DataError
from finetune.job_auto import AutoJob
from finetune.loop import Canceled
from finetune.recipe import load_recipe
from finetune.schema import AutoRecipe
from finetune.tables import read
from finetune.validate import validate
from tests.finetune.tiny import bert, reviews, trained

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def table(file: Path, rows: int, seed: int) -> Path:
    """Customers who leave: those that pay much and wrote lately, where a sum of columns says less than the two together."""
    draw, found = random.Random(seed), []
    for _ in range(rows):
        paid, days, plan = draw.uniform(0, 100), draw.uniform(0, 60), draw.choice(["basic", "plus", "pro"])
        label = "leaves" if (paid > 50) != (days > 30) else "stays"
        found.append(
            {"paid": round(paid, 3), "days": None if draw.random() < 0.05 else round(days, 3), "plan": plan, "label": label}
        )
    frame = pd.DataFrame(found)
    frame.to_parquet(file) if file.suffix == ".parquet" else frame.to_csv(file, index=False)
    return file


def recipe(**more: Any) -> AutoRecipe:
    given = {"task": "classify", "model": "auto", "name": "churn", "time_budget": 20, "max_trials": 3, "folds": 2, "threads": 1}
    loaded = load_recipe(given | {"estimators": ["lgbm"]} | more)
    assert isinstance(loaded, AutoRecipe)
    return loaded


def test_columns(tmp_path: Path) -> None:
    data = {"train": str(table(tmp_path / "train.csv", 400, 1)), "eval": str(table(tmp_path / "eval.parquet", 150, 2))}
    run = trained(recipe(data=data, register_to="main.default.churn"), tmp_path / "home", created_by="user:ann")
    result = run.state()["result"]
    assert result["metrics"]["macro_recall"] > result["baseline"]["macro_recall"] + 0.2
    assert result["estimator"] == "lgbm"
    assert result["registered"]["champion"]
    assert any(event["event"] == "trial" for event in run.events())
    mlflow.set_tracking_uri(run.spec["tracking_uri"])
    model = mlflow.pyfunc.load_model("models:/main.default.churn@champion")
    assert model.metadata.signature.inputs.input_names() == ["paid", "days", "plan"]
    rows = pd.DataFrame({"paid": [90.0, 90.0, 10.0], "days": [5.0, None, 5.0], "plan": ["pro", "unheard of", "basic"]})
    frame = model.predict(rows)
    assert [frame["label"][0], frame["label"][2]] == ["leaves", "stays"]
    assert frame[["p_leaves", "p_stays"]].sum(axis=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    version = mlflow.MlflowClient().get_model_version_by_alias("main.default.churn", "champion")
    assert version.tags["estimator"] == "lgbm"
    assert len(version.tags["data_sha256"]) == 64
    tags = mlflow.MlflowClient().get_registered_model("main.default.churn").tags
    assert version.tags["smalti.created_by"] == tags["smalti.created_by"] == "ann"
    assert "logistic" in version.description


def test_a_text_is_read_by_an_encoder(tmp_path: Path) -> None:
    data = {"train": str(reviews(tmp_path / "train.jsonl", 120, 1)), "text_column": "text"}
    asked = recipe(data=data, base_model=str(bert(tmp_path / "base")), estimators=["lrl1"], register_to="main.default.mood")
    run = trained(asked, tmp_path / "home")
    assert run.state()["result"]["baseline_name"] == "TF-IDF baseline"
    assert run.state()["result"]["metrics"]["macro_recall"] > 0.5
    mlflow.set_tracking_uri(run.spec["tracking_uri"])
    model = mlflow.pyfunc.load_model("models:/main.default.mood@champion")
    assert set(model.predict(pd.DataFrame({"text": ["it was good", "it was bad"]}))["label"]) <= {"good", "bad"}


def test_a_search_is_cancelled(tmp_path: Path) -> None:
    job = AutoJob(recipe(data={"train": str(table(tmp_path / "t.csv", 100, 1))}), tmp_path / "model")
    with pytest.raises(Canceled):
        job.fit(lambda *_, **__: None, lambda: job.trials >= 2, 1)


def test_what_is_wrong_with_a_table_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    lines = [
        "age,note,always,label",
        *(f"{i},note {i} of many,1,{'ab'[i % 2]}" for i in range(100)),
        "7,x,1,",
        "3,note 3 of many,1,b",
    ]
    file.write_text("\n".join(lines))
    data = recipe(data={"train": str(file)})
    report = validate(data)
    assert {(each.code, each.line, each.column) for each in report.problems} == {
        ("empty_label", 102, "label"),
        ("constant_column", None, "always"),
        ("free_text", None, "note"),
        ("duplicate_row", 103, None),
    }
    with pytest.raises(DataError, match="empty_label"):
        read(file, data.data)
    for content, code in (("a,b\n1,2\n", "missing_key"), ("age,label\n", "empty_file"), ("age,label\n1,a\n2,a\n", "one_class")):
        file.write_text(content)
        assert code in {each.code for each in validate(data).problems}
    file.write_bytes(b'note,age,label\n"one\nand more",1,a\n"say ""hi""",2,\n\nx,3,a \ny,4,b\n')
    found = {(each.code, each.line) for each in validate(data).problems}
    rare = {("rare_label", line) for line in (2, 6, 7)}
    assert found == {("empty_label", 4), ("similar_label", 6)} | rare | {("constant_column", None)} & found
    for content, code in ((b"age,age,label\n1,2,a\n3,4,b\n", "duplicate_key"), (b"age,label\n1\0,a\n2,b\n", "encoding")):
        file.write_bytes(content)
        assert code in {each.code for each in validate(data).problems}
    rows = b"7,5;a\n2,5;b\n8,5;a\n3,5;b\n" * 3
    lines = (b"\xef\xbb\xbfage;label\n" + rows).replace(b"\n", b"\r\n"), b"age\tlabel\n" + rows.replace(b";", b"\t")
    for content in (*lines, b"age|label\n" + rows.replace(b";", b"|")):
        file.write_bytes(content)
        assert [(each.code, each.line) for each in validate(data).problems] == [("duplicate_row", 6)]
        assert read(file, data.data)[0]["label"].tolist() == ["a", "b"] * 6
    (tmp_path / "rows.jsonl").write_text(json.dumps({"age": 1}) + "\n{")
    assert validate(recipe(data={"train": str(tmp_path / "rows.jsonl")})).as_dict()["counts"] == {"unreadable": 1}
    file.write_text("age,label\n1,a\n5,b\n3,a\n4,b\n")
    held_out = tmp_path / "held.csv"
    held_out.write_text("age,label\n1,a\n9,c\n")
    both = validate(recipe(data={"train": str(file), "eval": str(held_out)}))
    rare = {("rare_label", 2), ("rare_label", 3)}
    assert {(each.code, each.line) for each in both.problems} == {("leakage", 2), ("unknown_label", 3)} | rare


ROWS = [f"{i % 37},{'xyz'[i % 3]},{'ab'[i * 7 % 5 % 2]}" for i in range(60)]
LINES = ["age,plan,label", *ROWS]


@pytest.mark.parametrize(
    ("lines", "code", "line", "column"),
    [
        ([*LINES, "5,x"], "ragged_row", 62, None),
        ([*LINES, "5,x,a,9"], "ragged_row", 62, None),
        ([*LINES, '5,"x,a'], "bad_csv", 62, None),
        ([*LINES, "five,x,a"], "mixed_column", 62, "age"),
        ([*LINES, "inf,x,a"], "wrong_type", 62, "age"),
        ([*LINES, "5,x,c"], "few_rows", None, "label"),
        ([*LINES[:1], "1,x,a", "7,y,b"], "few_rows", None, "label"),
        ([f"{i or 'n'},{row}" for i, row in enumerate(LINES)], "id_column", None, "n"),
        ([f"{row},{row[-1]}!" if i else f"{row},copy" for i, row in enumerate(LINES)], "label_copy", None, "copy"),
        (["age,label", *(f"{i % 9},{i}.5" for i in range(60))], "too_many_labels", None, "label"),
        (["age,label", *(f"{i % 9}{i},{'a' if i else 'b'}" for i in range(60))], "label_skew", None, "label"),
        ([*LINES[:30], "caf\udce9,x,a"], "encoding", 31, None),
    ],
)
def test_what_a_table_may_have_besides(tmp_path: Path, lines: list[str], code: str, line: int | None, column: str | None) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    report = validate(recipe(data={"train": str(file)}))
    assert (code, line, column) in {(each.code, each.line, each.column) for each in report.problems}


def test_customers_who_are_alike_are_customers(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("\n".join([*LINES, *ROWS[:20]]))
    kept = AutoJob(recipe(data={"train": str(file)}), tmp_path / "model")
    assert len(kept.table) + len(kept.judged) == 80
    sides = [set(each[["age", "plan"]].itertuples(index=False, name=None)) for each in (kept.table, kept.judged)]
    assert set(kept.table["label"]) == set(kept.judged["label"]) == {"a", "b"}
    assert not sides[0] & sides[1]
    assert kept.warnings[0].startswith(f"{file}:62:")
    dropped = AutoJob(recipe(data={"train": str(file), "repeated": "drop"}), tmp_path / "model")
    assert len(dropped.table) + len(dropped.judged) == len(set(ROWS))
