"""What searches hold outlives the process in a file that is quick to read, never believed alone, and holds nothing deleted."""

from __future__ import annotations

import errno
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from retrieval import Indexes, memory, snapshot_file, snapshots, words
from retrieval.chunk_reads import ChunkReads
from retrieval.late import Asked
from retrieval.rows.schema import Spec
from retrieval.rows.store import RowStore
from retrieval.search import terms
from retrieval.snapshots import SnapshotOf, Snapshots
from retrieval.store import Store
from serving.state import open_database
from tests import servers
from tests.live import wait_until

WORDS = [f"tile{n}" for n in range(60)]


class Hashed:
    """Stands for the encoder: a text's vector is noise that its words seed."""

    name = fingerprint = "hashed"
    dimension = 384

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        out = np.stack([np.random.default_rng(crc32(text.encode())).standard_normal(384, np.float32) for text in texts])
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def embed_pieces(self, texts: Sequence[str]) -> tuple[np.ndarray, list[bytes]]:
        return self.embed(texts), [np.random.default_rng(len(text)).bytes(5 * 48) for text in texts]

    def token_starts(self, text: str) -> np.ndarray:
        return np.array([word.start() for word in re.finditer(r"\S+", text)], np.int64)

    def ask(self, query: str) -> Asked:
        spans = tuple(word.span() for word in re.finditer(r"\w+", query))
        return Asked(self.embed([query])[0], self.embed(query.split()), spans)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small indexes are written too, and their vectors in 8 bits with them."""
    monkeypatch.setattr(snapshots, "LEAST", 1)
    monkeypatch.setattr(memory, "CODED", 32)


class Home:
    """A state folder with an index over 30 documents; `open` is a start."""

    def __init__(self, root: Path) -> None:
        self.root, self.docs, self.snapshots = root, root / "docs", root / "snapshots"
        self._open: list[tuple[Indexes, sa.Engine]] = []
        for number in range(30):
            self.write(number)

    def write(self, number: int, salt: int = 0) -> Path:
        rng = np.random.default_rng([number, salt])
        path = self.docs / f"part{number % 3}" / f"doc{number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [f"## Section {number} {i}\n\n{' '.join(rng.choice(WORDS, 30))} only{number}v{salt}." for i in range(3)]
        path.write_text(f"# Title {number}\n\n" + "\n\n".join(parts) + "\n")
        return path

    def open(self) -> Indexes:
        engine = open_database(f"sqlite:///{self.root}/smalti.db")
        encoder: Any = Hashed()
        made = Indexes(engine, self.root / "chroma", encoder, self.snapshots)
        self._open.append((made, engine))
        return made

    def close(self) -> None:
        while self._open:
            indexes, engine = self._open.pop()
            indexes.close()
            engine.dispose()

    def filled(self) -> list[Any]:
        """Synced, searched, closed: what it answered."""
        indexes = self.open()
        indexes.add("docs", self.docs)
        indexes.sync("docs")
        found = answers(indexes)
        self.close()
        return found

    def file(self) -> Path:
        (path,) = self.snapshots.iterdir()
        return path

    def fresh(self) -> list[Any]:
        """What the database alone says."""
        engine = open_database(f"sqlite:///{self.root}/smalti.db")
        encoder: Any = Hashed()
        found = answers(Indexes(engine, self.root / "chroma", encoder))
        engine.dispose()
        return found


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    made.close()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the rows that were read from the database."""
    seen: list[int] = []
    records = ChunkReads.records

    def noted(self: ChunkReads, *given: Any) -> Iterator[Any]:
        for page in records(self, *given):
            seen.extend(row.seq for row in page)
            yield page

    monkeypatch.setattr(ChunkReads, "records", noted)
    return seen


FILTERS: list[Any] = [
    None,
    {"folder": "part1"},
    {"folder": ["part0", "part2"], "start >": 10},
    {"source LIKE": "doc7"},
    {"heading NOT": '["Section 7 0"]'},
    "start BETWEEN 0 AND 400 AND NOT title = 'Title 3'",
    "page IS NULL AND source LIKE '%doc1%'",
]


def answers(indexes: Indexes) -> list[Any]:
    """Of every kind of search, filter, facet and scan."""
    found: list[Any] = []
    for query in ("tile3 tile17 only7v0", "tile40 of Section 12"):
        for given in FILTERS:
            for mode in ("dense", "lexical", "hybrid"):
                for diversity in (0.0, 0.5):
                    passages = indexes.search("docs", query, k=7, mode=mode, filters=given, diversity=diversity)
                    found.append([each.to_dict() for each in passages])
    found.append(indexes.facets("docs", {"facets": ["folder", "source TOP 40"], "filters": {"start >": 10}}))
    found.append(indexes._scan("main.default.docs", 1000, None, frozenset()))
    return found


def test_a_start_answers_as_before_and_reads_no_row(home: Home, read: list[int]) -> None:
    before = home.filled()
    assert len(read) == 90
    read.clear()
    assert answers(home.open()) == before == home.fresh()
    assert len(read) == 90, "by the one without files"
    assert home.file().stat().st_mode & 0o777 == 0o600
    assert home.snapshots.stat().st_mode & 0o777 == 0o700


def test_what_changed_since_is_read_and_what_went_is_in_no_file(home: Home, read: list[int]) -> None:
    home.filled()
    old = home.file()
    assert b"doc7.md" in old.read_bytes()
    gone = Hashed().embed(["x"])
    rows = home.open()._finder.memory(1).snapshot()
    slot = next(slot for slot in range(rows.size) if rows.fields[slot]["source"].endswith("doc7.md"))
    gone = rows.matrix[slot].tobytes()
    assert gone in old.read_bytes()
    home.close()

    home.write(31)
    home.write(5, salt=1)
    (home.docs / "part1/doc7.md").unlink()
    read.clear()
    indexes = home.open()
    indexes.sync("docs")
    assert not old.exists(), "as soon as searches no longer see it"
    found = answers(indexes)
    assert sorted(set(read)) == list(range(91, 97)), "only what is new"
    assert found[-1] == home.fresh()[-1]
    home.close()
    new = home.file()
    assert b"doc7.md" not in new.read_bytes()
    assert gone not in new.read_bytes()
    assert b"doc31.md" in new.read_bytes()
    read.clear()
    assert answers(home.open()) == answers(home.open())
    assert read == []
    home.close()
    indexes = home.open()
    again = answers(indexes)
    assert again == home.fresh()


def test_a_few_new_rows_leave_the_file_and_many_have_it_written_anew(home: Home, read: list[int]) -> None:
    home.filled()
    old = home.file()
    home.write(31)
    indexes = home.open()
    indexes.sync("docs")
    home.close()
    assert home.file() == old, "3 rows to 90"
    read.clear()
    assert answers(home.open())[-1] == home.fresh()[-1]
    assert sorted(set(read)) == list(range(1, 94))
    home.close()
    for number in range(32, 36):
        home.write(number)
    home.open().sync("docs")
    home.close()
    assert home.file() != old


def flipped(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 4
    path.write_bytes(held)


def first_flipped(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[0] ^= 1
    path.write_bytes(held)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def torn(path: Path) -> None:
    """As long as it should be, and half of it never reached the disk."""
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)


def linked(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def renamed(path: Path) -> None:
    path.rename(path.with_name(f"{path.stem}.0123456789abcdef"))


@pytest.mark.parametrize("harm", [flipped, first_flipped, cut, emptied, torn, linked, renamed, os.unlink])
def test_a_file_that_is_not_what_was_written_is_not_believed(
    home: Home, read: list[int], harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    before = home.filled()
    harmed = home.file()
    harm(harmed)
    read.clear()
    with caplog.at_level(logging.WARNING, "smalti.retrieval"):
        assert answers(home.open()) == before
    assert len(read) == 90
    assert harm in (renamed, os.unlink) or str(harmed) in caplog.text
    assert list(home.snapshots.iterdir()) == []
    home.close()
    read.clear()
    assert home.file() != harmed
    assert answers(home.open()) == before
    assert read == []


@pytest.mark.parametrize("what", ["MADE", "layout"])
def test_a_file_that_was_made_otherwise_is_made_anew(
    home: Home, read: list[int], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = home.filled()
    if what == "MADE":
        monkeypatch.setattr(snapshot_file, "MADE", "another")
    else:
        engine = open_database(f"sqlite:///{home.root}/smalti.db")
        with engine.begin() as db:
            db.execute(sa.update(snapshots.snapshots).values(layout="{}"))
        engine.dispose()
    read.clear()
    assert answers(home.open()) == before
    assert len(read) == 90


def test_a_database_that_was_restored_does_not_take_later_rows_from_a_file(home: Home) -> None:
    """Numbers are given a second time there."""
    indexes = home.open()
    indexes.add("docs", home.docs)
    indexes.sync("docs")
    indexes._store.engine.dispose()
    with open_database(f"sqlite:///{home.root}/smalti.db").connect() as db:
        db.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(home.root / "smalti.db", home.root / "copy.db")
    for number in range(40, 50):
        home.write(number)
    indexes.sync("docs")
    home.close()
    assert b"doc45.md" in home.file().read_bytes()

    for path in home.root.glob("smalti.db*"):
        path.unlink()
    shutil.copy(home.root / "copy.db", home.root / "smalti.db")
    for number in range(40, 50):
        (home.docs / f"part{number % 3}" / f"doc{number}.md").unlink()
        home.write(number + 20)
    indexes = home.open()
    indexes.sync("docs")
    found = answers(indexes)
    assert found[-1] == home.fresh()[-1]
    assert not any("doc45" in each["source"] for each in found[-1]["data"])
    assert [each.source for each in indexes.search("docs", "only65v0", k=1, mode="lexical")] == ["part2/doc65.md"]


KILLED = """
import sys, time
from pathlib import Path
from retrieval import memory, snapshot_file, snapshots
from tests.retrieval.test_snapshots import Home
snapshots.LEAST, memory.CODED = 1, 32
array = snapshot_file._Writer.array
def slow(self, name, *given, **more):
    array(self, name, *given, **more)
    if name == sys.argv[2]:
        print("half", flush=True)
        time.sleep(600)
snapshot_file._Writer.array = slow
home = Home(Path(sys.argv[1]))
home.filled()
"""


def test_killed_while_it_is_written(home: Home, read: list[int]) -> None:
    before = home.filled()
    old = home.file()
    for at in ("keys", "codes.signs"):
        for path in home.snapshots.iterdir():
            path.unlink()  # so that it is written anew
        command = [sys.executable, "-c", KILLED, str(home.root), at]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as writing:
            assert writing.stdout is not None
            assert writing.stdout.readline() == b"half\n"
            writing.send_signal(signal.SIGKILL)
        (left,) = home.snapshots.iterdir()
        assert left.suffix == ".tmp"
        read.clear()
        assert answers(home.open()) == before
        assert len(read) == 90
        assert not left.exists()
        home.close()
        assert home.file() != old


def test_what_is_deleted_while_it_is_written_is_in_no_file(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "QUIET", 0.0)
    monkeypatch.setattr(snapshots, "SPACING", 0)
    half, go_on, array = threading.Event(), threading.Event(), snapshot_file._Writer.array

    def slow(self: Any, name: str, *given: Any, **more: Any) -> None:
        array(self, name, *given, **more)
        if name == "matrix":
            half.set()
            assert go_on.wait(60)

    monkeypatch.setattr(snapshot_file._Writer, "array", slow)
    indexes = home.open()
    indexes.add("docs", home.docs)
    indexes.sync("docs")
    assert half.wait(60)
    (home.docs / "part1/doc7.md").unlink()
    indexes.sync("docs")
    go_on.set()
    wait_until(lambda: [path.suffix != ".tmp" for path in home.snapshots.iterdir()] == [True])
    assert b"doc7.md" not in home.file().read_bytes()
    assert b"doc8.md" in home.file().read_bytes()


@pytest.mark.parametrize("when", ["rests", "is written"])
def test_an_index_that_is_dropped_leaves_no_file(home: Home, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home.filled()
    indexes = home.open()
    if when == "is written":
        monkeypatch.setattr(snapshots, "QUIET", 0.0)
        half, go_on, tell = threading.Event(), threading.Event(), SnapshotOf._tell

        def slow(*given: Any) -> None:
            half.set()
            assert go_on.wait(60)
            tell(*given)

        monkeypatch.setattr(SnapshotOf, "_tell", slow)
        home.write(7, salt=1)
        indexes.sync("docs")
        assert half.wait(60)
        dropping = threading.Thread(target=indexes.drop, args=("docs",))
        dropping.start()
        go_on.set()
        dropping.join()
    else:
        answers(indexes)
        indexes.drop("docs")
    home.close()
    assert list(home.snapshots.iterdir()) == []
    indexes = home.open()
    indexes.add("docs", home.docs)
    assert indexes.search("docs", "tile3") == []


@pytest.mark.parametrize("what", ["little space", "full", "no folder", "database"])
def test_what_cannot_be_written_is_told_and_searches_go_on(
    home: Home, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    indexes = home.open()
    indexes.add("docs", home.docs)
    indexes.sync("docs")
    before = answers(indexes)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "smalti.retrieval"):
        if what == "little space":
            patched.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 10))
        elif what == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        elif what == "no folder":
            home.snapshots.write_text("a file")
        else:
            patched.setattr(SnapshotOf, "_tell", _unreachable)
        try:
            indexes._snapshots.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "is not written" in caplog.text
    assert answers(indexes) == before
    assert not home.snapshots.is_dir() or list(home.snapshots.iterdir()) == []
    home.close()
    assert answers(home.open()) == before


def _unreachable(*_: Any) -> None:
    raise OperationalError("INSERT", {}, OSError(errno.EIO, "disk I/O error"))


def test_it_is_written_when_the_index_rests(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "QUIET", 0.0)
    indexes = home.open()
    indexes.add("docs", home.docs)
    indexes.sync("docs")
    wait_until(lambda: home.snapshots.exists() and any(path.suffix != ".tmp" for path in home.snapshots.iterdir()))


def test_small_indexes_have_no_file(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "LEAST", 91)
    home.filled()
    assert not home.snapshots.exists()


SPEC = Spec("id", "DIRECT_ACCESS", "HYBRID", dimension=4, columns={"id": "string", "n": "int", "v": "array<float>"})


def row(n: int, salt: int = 0) -> dict[str, Any]:
    vector = np.random.default_rng([n, salt]).standard_normal(4).astype(np.float32).tobytes()
    return {"key": str(n), "body": f'{{"id": "{n}", "n": {n}, "é": [1.5, null]}}', "content": "", "vector": vector, "terms": None}


def of_rows(store: RowStore) -> list[Any]:
    rows = store.snapshot(store.get("main.default.rows"))
    slots, scores = rows.nearest(np.array([1, 0.5, 0, 0], np.float32), 10, None if rows.whole else rows.alive)
    live = sorted(
        (rows.keys[slot], tuple(rows.fields[slot].items())) for slot in np.flatnonzero(rows.alive).tolist() if slot >= 0
    )
    return [[(rows.keys[slot], float(score)) for slot, score in zip(slots.tolist(), scores, strict=True)], live]


def over_rows(engine: sa.Engine, folder: Path | None) -> tuple[RowStore, Snapshots]:
    kept = Snapshots(engine, folder)
    return RowStore(engine, kept), kept


def rows_are_kept(engine: sa.Engine, folder: Path) -> None:
    Store(engine)
    store, kept = over_rows(engine, folder)
    index = store.create("main.default.rows", "e", SPEC, "")
    store.put(index.id, [row(n) for n in range(50)])
    before = of_rows(store)
    kept.close()
    (old,) = folder.iterdir()

    store, kept = over_rows(engine, folder)
    assert of_rows(store) == before
    store, kept = over_rows(engine, folder)
    store.remove(index.id, ["3", "4"])
    assert not old.exists(), "nobody has searched yet"
    store.put(index.id, [row(5, salt=1)])
    after = of_rows(store)
    kept.close()
    (new,) = folder.iterdir()
    assert b'"id":"3"' not in new.read_bytes()
    store, kept = over_rows(engine, folder)
    assert of_rows(store) == after == of_rows(over_rows(engine, None)[0])
    store.drop("main.default.rows")
    assert list(folder.iterdir()) == []
    kept.close()


def test_indexes_over_rows_have_files_too(engine: sa.Engine, tmp_path: Path) -> None:
    rows_are_kept(engine, tmp_path / "snapshots")


def test_rows_without_vectors_have_files_too(engine: sa.Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Store(engine)
    store, kept = over_rows(engine, tmp_path / "snapshots")
    index = store.create("main.default.rows", "e", replace(SPEC, subtype="FULL_TEXT", dimension=0), "")
    texts = [f"tile{n % 7} only{n}" for n in range(50)]
    store.put(index.id, [{**row(n), "vector": None, "terms": words.encode(text)} for n, text in enumerate(texts)])

    def worded() -> list[Any]:
        rows = store.snapshot(index)
        return [rows.lexical(rows.spans(terms(text, rows.languages))).tolist() for text in ("tile3 only7", "only49", "tile5")]

    before = worded()
    assert np.count_nonzero(before) > 10
    kept.close()
    store, kept = over_rows(engine, tmp_path / "snapshots")
    assert worded() == before
    assert len(list((tmp_path / "snapshots").iterdir())) == 1
    assert caplog.text == ""
    kept.close()


def test_with_postgresql_each_server_has_its_own(tmp_path: Path) -> None:
    with servers.postgres() as url:
        engine = open_database(url)
        rows_are_kept(engine, tmp_path / "a")
        first, kept = over_rows(engine, tmp_path / "a")
        index = first.create("main.default.rows", "e", SPEC, "")
        first.put(index.id, [row(n) for n in range(50)])
        before = of_rows(first)
        second, others = over_rows(engine, tmp_path / "b")
        assert of_rows(second) == before
        kept.close()
        others.close()
        assert len(list((tmp_path / "a").iterdir())) == len(list((tmp_path / "b").iterdir())) == 1
        for folder in ("a", "b"):
            assert of_rows(over_rows(engine, tmp_path / folder)[0]) == before
        second, others = over_rows(engine, tmp_path / "b")
        second.remove(index.id, ["1"])
        assert list((tmp_path / "b").iterdir()) == []
        assert of_rows(over_rows(engine, tmp_path / "a")[0]) == of_rows(second)
        assert list((tmp_path / "a").iterdir()) == [], "it goes when that server takes the change over"
        engine.dispose()


def test_a_start_removes_what_is_left_of_indexes_that_another_server_dropped(home: Home) -> None:
    home.filled()
    kept = home.file()
    left = [home.snapshots / "chunks-99.0a", home.snapshots / "rows-1.0b.tmp"]
    for path in left:
        path.write_bytes(b"rows of an index that is gone")
    home.open().start()
    assert kept.exists()
    assert not any(path.exists() for path in left)
