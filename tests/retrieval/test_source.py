"""Tables of every kind as sources of an index: what is read, what is left out and why, and how far behind it is."""

from __future__ import annotations

import datetime
import json
import math
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from retrieval import Indexes, SourceError, source
from retrieval.rows import write as writing
from retrieval.rows.schema import Spec
from retrieval.source import read_table, stamp
from tests.retrieval.conftest import Who

pytestmark = pytest.mark.anyio
ROWS: list[dict[str, Any]] = [
    {"id": 1, "text": "cobalt makes the glass blue", "price": 2.5, "lang": "en"},
    {"id": 2, "text": "knead the dough for ten minutes", "price": 9.0, "lang": "en"},
]


def place(kind: str, folder: Path) -> str:
    """The rows as a table of some kind."""
    if kind == "jsonl":
        (folder / "t.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
        return str(folder / "t.jsonl")
    if kind == "glob":
        for row in ROWS:
            (folder / f"part-{row['id']}.json").write_text(json.dumps([row]))
        return str(folder / "part-*.json")
    if kind == "sql":
        url = f"sqlite:///{folder}/shop.db"
        engine = sa.create_engine(url)
        table = sa.Table("t", sa.MetaData(), sa.Column("id", sa.Integer), sa.Column("text", sa.Text))
        table.append_column(sa.Column("price", sa.Float))
        table.append_column(sa.Column("lang", sa.Text))
        table.metadata.create_all(engine)
        with engine.begin() as db:
            db.execute(sa.insert(table), ROWS)
        engine.dispose()
        return f"{url}#t"
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.Table.from_pylist(ROWS)
    if kind == "parquet":
        pyarrow.parquet.write_table(table, folder / "t.parquet")
        return str(folder / "t.parquet")
    deltalake = pytest.importorskip("deltalake")
    deltalake.write_deltalake(str(folder / "delta"), table)
    return str(folder / "delta")


async def synced(indexes: Indexes, name: str = "main.default.shop") -> dict[str, Any]:
    over = indexes.over_rows
    index = over.get(name)
    assert over.store.begin(index.id)
    await over.sync(name, indexes.embed, Who("root", True))
    return over.store.report(index.id) or {}


def declared(indexes: Indexes, where: str, **more: Any) -> None:
    over = indexes.over_rows
    over.tables.add("main.default.t", where)
    over.endpoints.create("e", "STANDARD", "root")
    model = "all-minilm-l6-v2"
    spec = Spec("id", "DELTA_SYNC", text="text", model=model, query_model=model, source="main.default.t", **more)
    over.create("main.default.shop", "e", spec, "root")


@pytest.mark.parametrize("kind", ["jsonl", "glob", "sql", "parquet", "delta"])
async def test_a_table_of_any_kind_is_searchable_and_filterable(indexes: Indexes, tmp_path: Path, kind: str) -> None:
    where = place(kind, tmp_path)
    assert sorted(read_table(where), key=lambda row: row["id"]) == ROWS
    declared(indexes, where, chosen=("price",))
    report = await synced(indexes)
    assert {name: report[name] for name in ("rows", "added", "embedded", "skipped")} == {
        "rows": 2,
        "added": 2,
        "embedded": 2,
        "skipped": [],
    }
    best, *_ = await indexes.asearch("shop", "what makes glass blue", filters={"price <": 5})
    assert (best.id, best.text) == ("1", ROWS[0]["text"])
    assert list(indexes.over_rows.get("main.default.shop").spec.columns) == ["id", "text", "price"], "only what was chosen"
    again = await synced(indexes)
    assert (again["unchanged"], again["embedded"], again["added"]) == (2, 0, 0)


async def test_a_delta_table_is_followed_by_its_log(indexes: Indexes, tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    import pyarrow as pa

    where = place("delta", tmp_path)
    declared(indexes, where)
    await synced(indexes)
    before = stamp(where)
    assert before
    made = [{"id": 3, "text": "grout fills the gaps", "price": 1.0, "lang": "en"}]
    deltalake.write_deltalake(where, pa.Table.from_pylist(made), mode="append")
    assert stamp(where) != before
    deltalake.DeltaTable(where).delete("id = 1")
    report = await synced(indexes)
    assert (report["added"], report["deleted"], report["unchanged"], report["embedded"]) == (1, 1, 1, 1)


def test_a_delta_table_after_a_checkpoint_is_followed_still(tmp_path: Path) -> None:
    deltalake, pyarrow = pytest.importorskip("deltalake"), pytest.importorskip("pyarrow")
    where, rows = str(tmp_path / "t"), pyarrow.Table.from_pylist(ROWS)
    deltalake.write_deltalake(where, rows)
    deltalake.DeltaTable(where).create_checkpoint()
    before = stamp(where)
    deltalake.write_deltalake(where, rows, mode="append")
    assert stamp(where) != before


def test_rows_that_a_deletion_vector_hides_are_gone(tmp_path: Path) -> None:
    """As Databricks deletes by default: the file stays, and beside it stands which of its rows do not count."""
    deltalake, pyarrow = pytest.importorskip("deltalake"), pytest.importorskip("pyarrow")
    where = tmp_path / "t"
    deltalake.write_deltalake(str(where), pyarrow.Table.from_pylist([{"id": i, "price": math.nan} for i in range(3)]))
    log = where / "_delta_log"
    actions = [json.loads(line) for line in (log / f"{0:020}.json").read_text().splitlines()]
    add = next(action["add"] for action in actions if "add" in action)
    bitmap = struct.pack("<IQI", 1681511377, 1, 0) + struct.pack("<IIHHIH", 12346, 1, 0, 0, 16, 1)  # holds row 1
    vector = {"storageType": "i", "pathOrInlineDv": _z85(bitmap), "sizeInBytes": len(bitmap), "cardinality": 1}
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    commit = [
        {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}},
        {"remove": {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}},
        {"add": {**add, "deletionVector": vector}},
    ]
    (log / f"{1:020}.json").write_text("\n".join(map(json.dumps, commit)))
    assert list(read_table(str(where))) == [{"id": 0, "price": None}, {"id": 2, "price": None}]


def _z85(data: bytes) -> str:
    letters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    numbers = struct.iter_unpack(">I", data + bytes(-len(data) % 4))
    return "".join(letters[number // 85**power % 85] for (number,) in numbers for power in (4, 3, 2, 1, 0))


async def test_a_row_at_fault_is_left_out_alone_and_named(api: Any, indexes: Indexes, tmp_path: Path) -> None:
    table = tmp_path / "t.jsonl"
    rows = [*ROWS, {"id": None, "text": "no key"}, {"id": 2, "text": "twice"}, {"id": "x" * 1001, "text": "long"}]
    table.write_text("\n".join(map(json.dumps, rows)))
    indexes.over_rows.tables.add("main.default.t", str(table))
    spec = Spec("id", "DELTA_SYNC", "FULL_TEXT", source="main.default.t")
    indexes.over_rows.create("main.default.shop", "e", spec, "root")
    report = await synced(indexes)
    assert (report["rows"], report["skipped_rows"]) == (2, 3)
    status = (await api.get("/api/2.0/vector-search/indexes/main.default.shop")).json()["status"]
    assert status["indexed_row_count"] == 2
    assert status["lag_seconds"] == 0
    assert status["last_sync"]["added"] == 2
    reasons = [each["reason"] for each in status["skipped"]]
    assert ["no primary key" in reasons[0], "a row before it" in reasons[1], "1,000 characters" in reasons[2]] == [True] * 3
    then = time.time() + 1
    os.utime(table, (then, then))
    indexes.over_rows.store.reported(indexes.over_rows.get("main.default.shop").id, {**report, "read_ms": 1})
    status = (await api.get("/api/2.0/vector-search/indexes/main.default.shop")).json()["status"]
    assert "lag_seconds" in status, "that the table was changed since is told"


async def test_lag_is_told_of_a_database_and_of_a_folder_too(indexes: Indexes, tmp_path: Path, monkeypatch: Any) -> None:
    tables = indexes.over_rows.tables
    tables.add("main.default.t", place("sql", tmp_path))
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text("# Tiles\n\nTiles are set in mortar.\n")
    indexes.add("pages", docs)
    indexes.sync("pages")
    read = int(time.time() * 1000) + 1  # whole milliseconds: cut down, it may lie before the end of the sync
    assert tables.behind("main.default.t", None) is None, "it was never read"
    assert tables.behind("main.default.pages", read) == 0
    assert tables.behind("main.default.nowhere", read) is None
    clock = time.time() + 90
    monkeypatch.setattr("retrieval.rows.tables.time.time", lambda: clock)
    assert tables.behind("main.default.t", read) == pytest.approx(90, abs=5), "no change that was missed is older"
    assert tables.behind("main.default.pages", 1) == pytest.approx(90, abs=5)


def test_what_is_no_table_is_refused_with_a_reason(tmp_path: Path) -> None:
    for where, said in (
        (str(tmp_path / "none-*.jsonl"), "no file is named"),
        (str(tmp_path / "none.jsonl"), "does not exist"),
        (str(tmp_path), "is no table"),
        ("sqlite:///nowhere.db", "DATABASE_URL#TABLE"),
        (f"sqlite:///{tmp_path}/empty.db#t", "has no table"),
    ):
        with pytest.raises(SourceError, match=said):
            list(read_table(where))
    (tmp_path / "broken" / "_delta_log").mkdir(parents=True)
    with pytest.raises(SourceError, match="Delta table"):
        list(read_table(str(tmp_path / "broken")))


async def test_dates_and_nested_values_become_text(indexes: Indexes, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    day = datetime.date(2026, 1, 2)
    rows = [{"id": 1, "text": "glass", "day": day, "more": {"a": [1]}}]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    declared(indexes, str(tmp_path / "t.parquet"))
    await synced(indexes)
    found = await indexes.asearch("shop", "glass", filters={"day >=": "2026-01-01"})
    assert [p.id for p in found] == ["1"]


def test_values_are_json_and_filters_can_compare_them(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        "price": pa.array([2, None], pa.decimal128(10, 2)),
        "made": [datetime.datetime(2024, 5, 6, 7), None],
        "day": [datetime.date(2024, 5, 6), None],
        "raw": [b"\x00\xff", None],
        "more": [{"when": datetime.date(2024, 1, 1)}, None],
    }
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    first, second = read_table(str(tmp_path / "t.parquet"))
    assert first == {
        "price": 2.0,
        "made": "2024-05-06T07:00:00",
        "day": "2024-05-06",
        "raw": "AP8=",
        "more": {"when": "2024-01-01"},
    }
    assert set(second.values()) == {None}
    url = f"sqlite:///{tmp_path}/shop.db"
    engine = sa.create_engine(url)
    table = sa.Table("t", sa.MetaData(), sa.Column("price", sa.Numeric(10, 2)))
    table.metadata.create_all(engine)
    with engine.begin() as db:
        db.execute(sa.insert(table), {"price": "3.14"})
    engine.dispose()
    assert list(read_table(f"{url}#t")) == [{"price": 3.14}]


def test_csv_as_programs_write_it(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id;text\n1;tin, oxide\n")
    (tmp_path / "b.tsv").write_text("id\ttext\n1\ttin\n")
    (tmp_path / "c.csv").write_bytes("id,text\n1,grün\n".encode("cp1252"))
    assert list(read_table(str(tmp_path / "a.csv"))) == [{"id": 1, "text": "tin, oxide"}]
    assert list(read_table(str(tmp_path / "b.tsv"))) == [{"id": 1, "text": "tin"}]
    (tmp_path / "d.csv").write_text(
        "id,price,zip,sold,text\n1,2.50,01234,TRUE,a\n2,,99999,false,7\n3,1e3,1,true," + "x" * 140_000
    )
    rows = list(read_table(str(tmp_path / "d.csv")))
    assert [list(row.values())[:4] for row in rows] == [
        [1, 2.5, "01234", True],
        [2, None, "99999", False],
        [3, 1000.0, "1", True],
    ]
    assert [len(row["text"]) for row in rows] == [1, 1, 140_000]
    with pytest.raises(SourceError, match="not UTF-8"):
        list(read_table(str(tmp_path / "c.csv")))


async def test_a_sync_that_ends_half_way_is_gone_on_with(
    indexes: Indexes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "GROUP", 4)
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": f"tile number {i}"}) + "\n" for i in range(10)))
    declared(indexes, str(path))
    store, index = indexes.over_rows.store, indexes.over_rows.get("main.default.shop")
    seen: list[str] = []

    async def breaks(endpoint: str, texts: Any, caller: Any) -> Any:
        seen.append(store.get(index.name).told)
        if len(seen) == 3:
            raise ConnectionError
        return await indexes.embed(endpoint, texts, caller)

    assert store.begin(index.id)
    with pytest.raises(ConnectionError):
        await indexes.over_rows.sync(index.name, breaks, Who("root", True))
    assert seen == ["0 of 10 changed rows are in.", "4 of 10 changed rows are in.", "8 of 10 changed rows are in."]
    assert store.count(index.id) == 8
    report = await synced(indexes)
    assert (report["added"], report["unchanged"], report["embedded"]) == (2, 8, 2)


def test_a_table_of_another_schema_is_found(tmp_path: Path) -> None:
    engine = sa.create_engine("sqlite://")
    with engine.connect() as db:  # what PostgreSQL calls a schema, SQLite attaches
        db.exec_driver_sql(f"ATTACH '{tmp_path}/other.db' AS shop")
        db.exec_driver_sql("CREATE TABLE shop.items (id INTEGER, text TEXT)")
        assert source._reflected(db, "shop.items").schema == "shop"
        with pytest.raises(sa.exc.NoSuchTableError):
            source._reflected(db, "shop.nothing")


async def test_vectors_that_a_table_holds_as_text_are_read(indexes: Indexes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,text,vec\n1,a,"[1, 0]"\n2,b,"[0, 1]"\n3,c,no vector\n')
    indexes.over_rows.tables.add("main.default.t", str(tmp_path / "t.csv"))
    indexes.over_rows.endpoints.create("e", "STANDARD", "root")
    spec = Spec("id", "DELTA_SYNC", vector="vec", dimension=2, source="main.default.t")
    indexes.over_rows.create("main.default.shop", "e", spec, "root")
    report = await synced(indexes)
    assert (report["rows"], report["skipped"][0]["reason"]) == (2, "row 3 needs 2 finite numbers in 'vec'")
