from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from agents.tools.sql import SqlError, Tables, render


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    (tmp_path / "orders.csv").write_text("id,country,amount\n1,IT,10.5\n2,DE,20\n3,IT,30\n")
    return Tables({"orders": tmp_path / "orders.csv"}, max_rows=5)


def test_an_answer_cites_its_query_and_shows_its_table(tables: Tables) -> None:
    assert tables.describe() == "orders(id BIGINT, country VARCHAR, amount DOUBLE)"
    found = tables.query("SELECT country, sum(amount) AS total FROM orders GROUP BY country ORDER BY country;")
    assert found.rows == (("DE", 20.0), ("IT", 40.5))
    shown = render(found.to_dict())
    assert "```sql\nSELECT country, sum(amount)" in shown
    assert "| IT | 40.5 |" in shown
    cut = tables.query("SELECT range AS n FROM range(100)")
    assert (len(cut.rows), cut.cut) == (5, True)
    assert "Only the first 5 rows" in render(cut.to_dict())


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE orders",
        "INSERT INTO orders VALUES (4, 'FR', 1)",
        "UPDATE orders SET amount = 0",
        "SELECT 1; DROP TABLE orders",
        "COPY orders TO '/tmp/stolen.csv'",
        "ATTACH '/tmp/other.db'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/*')",
        "SELEKT 1",
        "",
        "SELECT nothing FROM orders",
    ],
)
def test_nothing_is_written_and_nothing_outside_is_read(tables: Tables, sql: str) -> None:
    with pytest.raises(SqlError) as caught:
        tables.query(sql)
    assert "\n" not in str(caught.value)
    assert tables.query("SELECT count(*) FROM orders").rows == ((3,),)


def test_a_query_that_never_ends_or_joins_the_world(tables: Tables) -> None:
    tables._timeout = 0.3
    began = time.monotonic()
    with pytest.raises(SqlError, match=r"within 0\.3 s|[Mm]emory"):
        tables.query("SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range * b.range % 7 = 3")
    with pytest.raises(SqlError, match=r"within 0\.3 s|[Mm]emory"):
        tables.query("WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT max(n) FROM t")
    print(f"stopped after {time.monotonic() - began:.2f} s")
    tables._timeout = 30
    assert tables.query("SELECT 1").rows == ((1,),)


def test_queries_side_by_side(tables: Tables) -> None:
    found: list[object] = []

    def ask(number: int) -> None:
        found.append(tables.query(f"SELECT {number}").rows[0][0])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=str) == list(range(8))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("missing.csv", "table.docx"):
        with pytest.raises(SqlError, match="orders"):
            Tables({"orders": tmp_path / name})
