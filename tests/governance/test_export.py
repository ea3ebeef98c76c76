from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from governance.call import CallError
from governance.export import delta, parquet
from tests.governance.conftest import House, answering

pytestmark = pytest.mark.anyio


async def _rows(house: House) -> list[dict]:
    await house.gateway.invoke(house.call(usage_context={"team": "x"}), answering)
    with pytest.raises(CallError):
        await house.gateway.invoke(house.call("wrong"), answering)
    return list(house.journal.rows())


async def test_a_delta_table_holds_what_the_journal_does(house: House, tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake", reason="the extra smalti[delta] is not installed")
    rows = await _rows(house)
    assert delta(rows, tmp_path / "table") == 2
    assert delta(rows, tmp_path / "table") == 2  # a second export takes the first one's place
    table = deltalake.DeltaTable(str(tmp_path / "table"))
    assert table.version() == 1
    found = {row["databricks_request_id"]: row for row in table.to_pyarrow_table().to_pylist()}
    assert found.keys() == {row["databricks_request_id"] for row in rows}
    for row in rows:
        other = found[row["databricks_request_id"]]
        assert (other["status_code"], other["requester"]) == (row["status_code"], row["requester"])
        assert other["request_time"] == datetime.fromisoformat(row["request_time"])
    answered = next(row for row in found.values() if row["status_code"] == 200)
    assert json.loads(answered["usage_context"]) == {"team": "x"}
    assert "output" in json.loads(answered["response"])


async def test_duckdb_reads_the_parquet_file(house: House, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    rows = await _rows(house)
    assert parquet(rows, tmp_path / "rows.parquet") == 2
    counted = duckdb.sql(f"select status_code, count(*) from '{tmp_path}/rows.parquet' group by all order by all").fetchall()
    assert counted == [(200, 1), (401, 1)]
