"""Indexes and tables that `smalti.yaml` declares."""

from __future__ import annotations

from pathlib import Path

from tests.live import start, stop


def test_the_file_declares_tables_and_who_sees_which_rows(tmp_path: Path) -> None:
    (tmp_path / "docs/hr").mkdir(parents=True)
    (tmp_path / "docs/hr/leave.md").write_text("# Leave\n\nThirty days of leave a year.\n")
    (tmp_path / "shop.jsonl").write_text('{"id": 1, "text": "a blue tile"}\n')
    config = tmp_path / "smalti.yaml"
    config.write_text(
        f"indexes:\n- {{name: docs, source: {tmp_path}/docs, row_access: folder}}\n"
        f"tables:\n- {{name: shop, source: {tmp_path}/shop.jsonl}}\n"
    )
    live = start(tmp_path / "home", tmp_path / "docs", config=config)
    try:
        with live.client() as client:
            assert client.get("/api/2.0/smalti/indexes/docs/row-access").json()["column"] == "folder"
            tables = client.get("/api/2.0/smalti/indexes/tables/all").json()["tables"]
            assert tables == [{"name": "main.default.shop", "place": f"{tmp_path}/shop.jsonl"}]
    finally:
        stop(live)
