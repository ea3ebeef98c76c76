"""An index follows its folder, finds what it holds, and survives what happens to it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy import func, select

from retrieval import BadRequest, Encoder, Indexes, NotFound, Progress, SourceError, full_name
from retrieval import load as loading
from retrieval import search as searching
from retrieval.chunk import Chunking
from retrieval.search import terms, tidy
from retrieval.tables import chunks, pending


def check(indexes: Indexes, name: str = "docs") -> None:
    """Every structure holds the same chunks, and every chunk is its document's text."""
    info = indexes.get(name)
    rows = list(indexes.rows(name))
    assert len(rows) == info.chunks == len({row["id"] for row in rows})
    texts = {row["document_id"]: indexes.document(name, row["document_id"]).text for row in rows}
    assert len(texts) <= info.documents
    for row in rows:
        assert texts[row["document_id"]][row["start"] : row["end"]] == row["text"]
    store, vectors = indexes._store, indexes._vectors
    index_id = indexes._row(name).id
    collection = vectors.open(index_id)
    assert set(collection.get(include=[])["ids"]) == {row["id"] for row in rows}
    with store.reading() as db:
        assert db.execute(select(func.count()).select_from(pending).where(pending.c.index_id == index_id)).scalar_one() == 0
        worded = "SELECT count(*) FROM vector_terms t JOIN vector_chunks c ON c.seq = t.seq WHERE index_id = ?"
        known = db.exec_driver_sql(worded, (index_id,))
        assert known.scalar_one() == info.chunks
        for row in db.execute(select(chunks.c.id, chunks.c.vector).where(chunks.c.index_id == index_id).limit(20)):
            found = collection.get(ids=[row.id], include=["embeddings"])["embeddings"]
            assert np.allclose(found[0], np.frombuffer(row.vector, np.float32), atol=1e-5)
    held = indexes._finder.memory(index_id).refresh()
    assert set(held.slot_of()) == {row["id"] for row in rows}


def test_folder_to_passages(indexes: Indexes, folder: Path) -> None:
    info = indexes.add("docs", folder)
    assert (info.name, info.status, info.chunks, info.ready) == ("main.default.docs", "NOT_SYNCED", 0, False)
    told: list[Progress] = []
    report = indexes.sync("docs", told.append)
    assert (report.added, report.changed, report.deleted, report.unchanged, report.skipped) == (3, 0, 0, 0, ())
    assert report.chunks == report.embedded == 5
    assert (told[0].done, told[-1].done, told[-1].total) == (0, 3, 3)
    assert told[-1].remaining == 0
    best = indexes.search("docs", "What makes glass blue?")[0]
    assert (best.source, best.title, best.heading) == ("glass.md", "Glass", ("Glass", "Colours"))
    assert best.index == "main.default.docs"
    assert best.similarity > 0.4
    assert best.lexical > 0
    assert indexes.document("docs", best.document_id).text[best.start : best.end] == best.text
    assert indexes.passage("docs", best.id).text == best.text
    info = indexes.get("main.default.docs")
    assert (info.status, info.documents, info.chunks, info.report) == ("ONLINE", 3, 5, report)
    check(indexes)


def test_only_what_changed_changes(indexes: Indexes, folder: Path) -> None:
    indexes.add("docs", folder)
    indexes.sync("docs")
    before = {row["id"]: row for row in indexes.rows("docs")}

    again = indexes.sync("docs")
    assert (again.unchanged, again.embedded, again.added + again.changed + again.deleted) == (3, 0, 0)

    os.utime(folder / "glass.md", (1, 1))  # a new time, the same bytes
    assert (indexes.sync("docs").unchanged, indexes.sync("docs").embedded) == (3, 0)

    bread = folder / "guides" / "bread.md"
    bread.write_text(bread.read_text().replace("forty minutes", "fifty minutes"))
    changed = indexes.sync("docs")
    assert (changed.changed, changed.unchanged, changed.embedded) == (1, 2, 1)
    after = {row["id"]: row for row in indexes.rows("docs")}
    assert len(before.keys() - after.keys()) == len(after.keys() - before.keys()) == 1
    assert "fifty" in indexes.search("docs", "how long to bake")[0].text
    assert not any("forty" in p.text for p in indexes.search("docs", "bake for forty minutes"))

    (folder / "new.md").write_text("# Kiln\n\nThe kiln is cooled overnight.\n")
    (folder / "glass.md").unlink()
    moved = indexes.sync("docs")
    assert (moved.added, moved.deleted, moved.unchanged) == (1, 1, 2)
    assert {row["source"] for row in indexes.rows("docs")} == {"new.md", "guides/bread.md", "guides/client.txt"}
    assert all(p.source != "glass.md" for p in indexes.search("docs", "cobalt makes the glass blue", k=10))
    check(indexes)


def test_a_text_moved_within_its_file_keeps_id_and_vector(indexes: Indexes, folder: Path) -> None:
    indexes.add("docs", folder)
    indexes.sync("docs")
    before = {row["id"]: row["start"] for row in indexes.rows("docs")}
    glass = folder / "glass.md"
    glass.write_text("Some words before the title.\n\n" + glass.read_text())
    assert indexes.sync("docs").embedded == 1
    after = {row["id"]: row["start"] for row in indexes.rows("docs")}
    assert before.keys() < after.keys()
    assert before != {key: after[key] for key in before}
    check(indexes)


def test_the_same_text_twice_is_embedded_once_and_shown_once(indexes: Indexes, folder: Path) -> None:
    text = "# Same\n\nThe very same words.\n\n# Same\n\nThe very same words.\n"
    (folder / "one.md").write_text(text)
    (folder / "two.md").write_text(text)
    indexes.add("docs", folder)
    report = indexes.sync("docs")
    assert report.chunks - report.embedded == 3
    found = [p for p in indexes.search("docs", "the very same words", k=4) if "very same" in p.text]
    assert len(found) == 1, "what reads the same is shown once"
    rows = [row["source"] for row in indexes.rows("docs") if "very same" in row["text"]]
    assert rows == ["one.md", "one.md", "two.md", "two.md"]
    check(indexes)


def test_bad_files_are_named_and_the_rest_is_indexed(indexes: Indexes, folder: Path) -> None:
    (folder / "empty.md").touch()
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "photo.png").write_bytes(b"png")
    (folder / "data.bin").write_bytes(b"\x00\x01")
    with (folder / "huge.txt").open("wb") as file:
        file.truncate(200_000_000)
    indexes.add("docs", folder)
    report = indexes.sync("docs")
    assert report.added == 3
    reasons = {s.source: s.reason for s in report.skipped}
    assert reasons.keys() == {"empty.md", "broken.pdf", "data.bin", "huge.txt"}
    assert "200 MB" in reasons["huge.txt"]
    assert {s.source for s in indexes.get("docs").skipped} == reasons.keys()
    assert {s.source: s.reason for s in indexes.sync("docs").skipped} == reasons, "known to be bad without being read again"
    (folder / "broken.pdf").unlink()
    (folder / "glass.md").write_bytes(bytes(range(256)))
    report = indexes.sync("docs")
    assert report.deleted == 1, "what a broken file held before is gone"
    assert {s.source for s in report.skipped} == {"empty.md", "data.bin", "huge.txt", "glass.md"}
    check(indexes)


def test_missing_empty_and_hopeless_folders(indexes: Indexes, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        indexes.add("docs", tmp_path / "nowhere")
    place = tmp_path / "place"
    place.mkdir()
    indexes.add("docs", place)
    with pytest.raises(SourceError, match="holds no documents"):
        indexes.sync("docs")
    (place / "bad.md").touch()
    with pytest.raises(SourceError, match=r"bad\.md: empty"):
        indexes.sync("docs")
    assert "bad.md" in indexes.get("docs").error
    (place / "good.md").write_text("# Good\n\nNow there is one.")
    indexes.sync("docs")
    assert indexes.get("docs").error == ""
    shutil.rmtree(place)
    with pytest.raises(SourceError, match="does not exist"):
        indexes.sync("docs")
    assert indexes.search("docs", "now there is one"), "a folder that is not there deletes nothing"


def test_a_single_file_is_a_source(indexes: Indexes, folder: Path) -> None:
    indexes.add("one", folder / "glass.md")
    assert indexes.sync("one").added == 1
    assert {row["source"] for row in indexes.rows("one")} == {"glass.md"}


def test_names(indexes: Indexes, folder: Path) -> None:
    assert full_name("docs") == "main.default.docs"
    assert full_name("sales.docs") == "main.sales.docs"
    assert full_name("a.b.c") == "a.b.c"
    for bad in ("", "a.b.c.d", "a b", "a..b", "docs'; --", "../x", "ü"):
        with pytest.raises(BadRequest):
            indexes.add(bad, folder)
    with pytest.raises(NotFound, match="smalti index add nothing"):
        indexes.search("nothing", "x")


def test_indexes_are_apart_and_drop_leaves_nothing(indexes: Indexes, folder: Path, engine: sa.Engine) -> None:
    indexes.add("docs", folder)
    indexes.sync("docs")
    indexes.add("other", folder / "guides")
    assert indexes.sync("other").embedded == 0, "the same text has the same vector in every index"
    assert {p.source for p in indexes.search("other", "glass", k=50)} == {"bread.md", "client.txt"}
    assert [info.name for info in indexes.list()] == ["main.default.docs", "main.default.other"]
    indexes.drop("docs")
    with pytest.raises(NotFound):
        indexes.get("docs")
    assert indexes.search("other", "bread")
    indexes.drop("other")
    with engine.connect() as db:
        for table in ("vector_indexes", "vector_documents", "vector_chunks", "vector_pending", "vector_skipped", "vector_terms"):
            assert db.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one() == 0
    indexes.add("docs", folder)
    assert indexes.sync("docs").added == 3


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_modes_and_identifiers(indexes: Indexes, folder: Path, mode: str) -> None:
    indexes.add("docs", folder)
    indexes.sync("docs")
    for query in ("max_retries", "E1047", "HTTPTimeout seconds"):
        assert indexes.search("docs", query, mode=mode)[0].source == "guides/client.txt"
    assert len(indexes.search("docs", "glass", k=1, mode=mode)) == 1
    scores = [p.score for p in indexes.search("docs", "glass bread retries", k=10, mode=mode)]
    assert scores == sorted(scores, reverse=True)


def test_a_very_large_index_asks_chroma_for_the_nearest(indexes: Indexes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indexes.add("docs", folder)
    indexes.sync("docs")
    scanned = indexes.search("docs", "who cuts tiles by hand?", mode="dense")
    asked = []
    query = indexes._vectors.query
    monkeypatch.setattr(searching, "STORED", 0)
    monkeypatch.setattr(indexes._vectors, "query", lambda *given: asked.append(given) or query(*given))
    assert indexes.search("docs", "who cuts tiles by hand?", mode="dense") == scanned
    assert asked


@pytest.mark.parametrize(
    "query",
    [
        "", "   ", "🙂", "?!,;", "\x00", "a\x00b", '"', "'", "NEAR(", "glass AND", "* OR *", "text:glass", "the of and", "-",
        "(((", "^glass", "{a b}", "\ud800", "東京", "x" * 100_000, "glass " * 20_000, "a_b-c.d/e:f", "\n\t",
        "SELECT * FROM x; DROP TABLE vector_chunks",
    ],
)  # fmt: skip
def test_no_question_is_syntax(indexes: Indexes, folder: Path, query: str) -> None:
    indexes.add("docs", folder)
    indexes.sync("docs")
    for mode in ("hybrid", "lexical", "dense"):
        assert isinstance(indexes.search("docs", query, mode=mode), list)


def test_terms_of_a_question() -> None:
    def of(*found: str) -> list[int]:
        return [zlib.crc32(each.encode()) for each in found]

    assert terms("How do I set max_retries?", [0]) == of("set", "max", "retri", "=max_retries")
    assert terms("to be or not to be", [0]) == of("to", "be", "or", "not")
    assert terms("?!", [0]) == []
    assert len(tidy("x" * 100_000)) == 4000


def test_k_and_mode_are_checked(indexes: Indexes, folder: Path) -> None:
    indexes.add("docs", folder)
    assert indexes.search("docs", "anything") == []
    for k in (0, -1, 1001):
        with pytest.raises(BadRequest, match="k must be"):
            indexes.search("docs", "x", k=k)
    with pytest.raises(BadRequest, match="mode must be"):
        indexes.search("docs", "x", mode="semantic")


@pytest.mark.anyio
async def test_many_questions_at_once(indexes: Indexes, folder: Path) -> None:
    indexes.add("docs", folder)
    await asyncio.to_thread(indexes.sync, "docs")
    queries = ["blue glass", "bake bread", "max_retries"] * 10
    answers = await asyncio.gather(*(indexes.asearch("docs", q, k=2) for q in queries))
    assert [a[0].source for a in answers] == ["glass.md", "guides/bread.md", "guides/client.txt"] * 10
    with pytest.raises(NotFound):
        await indexes.asearch("none", "x")


@pytest.mark.parametrize("harm", ["missing", "file", "garbage", "emptied", "older", "rows"])
def test_chroma_is_rebuilt_from_the_truth(engine: sa.Engine, tmp_path: Path, encoder: Encoder, folder: Path, harm: str) -> None:
    place, kept = tmp_path / "chroma", tmp_path / "kept"
    first = Indexes(engine, place, encoder)
    first.add("docs", folder)
    first.sync("docs")
    first.close()
    shutil.copytree(place, kept)
    if harm in ("missing", "file"):
        shutil.rmtree(place)
        if harm == "file":
            place.write_text("no folder")
    elif harm == "garbage":
        for file in place.rglob("*"):
            if file.is_file():
                file.write_bytes(b"garbage" * 1000)
    elif harm == "emptied":
        for file in place.rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
    elif harm == "older":
        second = Indexes(engine, place, encoder)
        glass = folder / "glass.md"
        glass.write_text(glass.read_text().replace("Cobalt", "Copper"))  # as many chunks as before
        second.sync("docs")
        second.close()
        shutil.rmtree(place)
        kept.rename(place)
    else:
        with sa.create_engine(f"sqlite:///{place}/chroma.sqlite3").begin() as db:
            for (table,) in db.exec_driver_sql(
                "SELECT name FROM sqlite_master WHERE type='table' AND name LIKE 'embedding%'"
            ).all():
                if "fulltext" not in table:
                    db.exec_driver_sql(f"DELETE FROM {table}")
    indexes = Indexes(engine, place, encoder)
    try:
        assert len(indexes.search("docs", "what makes the glass blue", mode="dense", k=10)) == 5
        check(indexes)
    finally:
        indexes.close()


def test_another_encoder_searches_words_until_synced(
    engine: sa.Engine, tmp_path: Path, encoder: Encoder, exact: Encoder, folder: Path
) -> None:
    first = Indexes(engine, tmp_path / "chroma", encoder)
    first.add("docs", folder)
    first.sync("docs")
    first.close()
    indexes = Indexes(engine, tmp_path / "chroma", exact)
    try:
        assert indexes.search("docs", "cobalt blue")[0].similarity == 0
        assert indexes.search("docs", "azure", mode="hybrid") == []
        report = indexes.sync("docs")
        assert (report.changed, report.embedded) == (3, 5)
        assert indexes.search("docs", "cobalt blue")[0].similarity > 0.3
        check(indexes)
    finally:
        indexes.close()


def test_how_documents_are_cut_is_the_indexs_own(indexes: Indexes, folder: Path) -> None:
    indexes.add("docs", folder)
    whole = indexes.sync("docs").chunks
    plan = Chunking("sentences", 16)
    assert indexes.add("docs", folder, plan).chunking == {"strategy": "sentences", "tokens": 16, "overlap": 0}
    report = indexes.sync("docs")
    assert (report.changed, report.chunks > whole) == (3, True)
    check(indexes)
    indexes.add("docs", folder)
    assert indexes.sync("docs").unchanged == 3, "naming the folder again leaves how it is cut"
    indexes.add("docs", folder, Chunking())
    assert indexes.sync("docs").chunks == whole
    indexes.add("docs", folder, plan)
    indexes.drop("docs")
    assert indexes.add("docs", folder).chunking["strategy"] == "structure", "another index of the name begins anew"


@pytest.mark.anyio
async def test_questions_in_other_languages_are_searched_by_words_and_told_so(indexes: Indexes, folder: Path) -> None:
    (folder / "urlaub.md").write_text(
        "# Urlaub\n\nDie Mitarbeiter haben 30 Tage Urlaub, und der Antrag ist im Portal zu stellen.\n"
    )
    indexes.add("docs", folder)
    indexes.sync("docs")

    async def asked(question: str, kind: str = "HYBRID") -> tuple[list[str], list[str]]:
        found = await indexes.answer(
            "docs", {"op": "query", "query_text": question, "query_type": kind, "num_results": 3, "columns": ["source"]}
        )
        return [row[0] for row in found["rows"]], found["debug"].get("warnings", [])

    sources, warnings = await asked("wie ist der Urlaub zu beantragen?")
    assert sources == ["urlaub.md"], "what has none of the words is not found"
    assert "knows English" in warnings[0]
    sources, warnings = await asked("где синее стекло")
    assert (len(sources), "knows English" in warnings[0]) == (3, True), "where no word is found, vectors are all there is"
    assert (await asked("what makes glass blue?"))[1] == []
    assert (await asked("wie ist der Urlaub zu beantragen?", "FULL_TEXT"))[1] == []


def test_files_that_change_or_vanish_during_a_sync(indexes: Indexes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glass, bread = folder / "glass.md", folder / "guides" / "bread.md"
    real_read, real_stat = loading._read, os.stat

    def read(path: Path) -> tuple[bytes, os.stat_result]:
        if path == bread:
            path.unlink()
        return real_read(path)

    def stat(path: Path, *args: object, **options: object) -> os.stat_result:
        if path == glass:  # written to between being read and being looked at again
            glass.write_text(f"# Glass\n\nRewritten meanwhile, {time.monotonic_ns()}.")
        return real_stat(path, *args, **options)  # type: ignore[arg-type]

    indexes.add("docs", folder)
    monkeypatch.setattr(loading, "_read", read)
    monkeypatch.setattr(loading.os, "stat", stat)
    reasons = {s.source: s.reason for s in indexes.sync("docs").skipped}
    monkeypatch.undo()
    assert "deleted while" in reasons["guides/bread.md"]
    assert "changed while" in reasons["glass.md"]
    assert indexes.sync("docs").skipped == ()
    assert indexes.search("docs", "glass")[0].text.startswith("Rewritten meanwhile")
    check(indexes)


def test_a_query_during_syncs_sees_old_or_new(indexes: Indexes, tmp_path: Path) -> None:
    """Each version of the document says its number in every chunk; no answer mixes two."""
    root = tmp_path / "versions"
    root.mkdir()

    def write(version: int) -> None:
        parts = "".join(f"## Part {i}\n\nVersion {version} of the tides, part {i}.\n\n" for i in range(6))
        (root / "tides.md").write_text(f"# Tides\n\n{parts}")

    write(0)
    indexes.add("docs", root)
    indexes.sync("docs")
    stop, mixed, seen = threading.Event(), [], set()

    def ask() -> None:
        while not stop.is_set():
            versions = {p.text.split()[1] for p in indexes.search("docs", "version of the tides", k=10)}
            seen.update(versions)
            if len(versions) > 1:
                mixed.append(versions)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for version in range(1, 8):
            write(version)
            indexes.sync("docs")
    finally:
        stop.set()
        asking.join()
    assert not mixed
    assert len(seen) > 1
    assert len(indexes.search("docs", "version of the tides", k=10)) == 6


SYNC = """
import sys
from pathlib import Path
import sqlalchemy as sa
from retrieval import Encoder, Indexes
from retrieval import sync
sync.GROUP = 8
home, cache, docs = map(Path, sys.argv[1:])
engine = sa.create_engine(f"sqlite:///{home}/smalti.db", connect_args={"timeout": 30})
with engine.connect() as db:
    db.exec_driver_sql("PRAGMA journal_mode=WAL")
indexes = Indexes(engine, home / "chroma", Encoder.load(cache, threads=1))
indexes.add("docs", docs)
indexes.sync("docs", lambda p: print(p.done, flush=True))
"""


def test_kill_during_sync_then_sync(
    tmp_path: Path, encoder: Encoder, engine: sa.Engine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()

    def write(version: int) -> None:
        for i in range(60):
            body = "".join(f"## Section {n}\n\nFile {i}, section {n}, version {version if n % 2 else 0}.\n\n" for n in range(4))
            (docs / f"{i}.md").write_text(f"# Document {i}\n\n{body}")

    cache = tmp_path_factory.getbasetemp() / "encoder"
    for round_, stop_at in enumerate((9, 40)):
        write(round_)
        child = subprocess.Popen(
            [sys.executable, "-c", SYNC, tmp_path, cache, docs], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
        )
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= stop_at:
                break
        time.sleep(0.01 * round_)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    indexes = Indexes(engine, tmp_path / "chroma", encoder)
    try:
        half = indexes.get("docs")
        assert half.documents > 0
        indexes.search("docs", "section version")
        report = indexes.sync("docs")
        assert report.added + report.changed + report.unchanged == 60
        assert report.unchanged >= 8, "what was written before the kill is not done again"
        assert indexes.get("docs").chunks == 240
        check(indexes)
    finally:
        indexes.close()
