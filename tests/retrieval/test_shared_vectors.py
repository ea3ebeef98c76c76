"""Several processes on one PostgreSQL and one Chroma server, both real. Searches ask Chroma however small an index is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import psycopg
import pytest
import sqlalchemy as sa
from chromadb.config import Settings

from retrieval import Encoder, Indexes, NotFound, RetrievalError, revisions, shared_vectors
from retrieval import search as searching
from retrieval.chroma_server import ChromaServer
from retrieval.locks import COPY, SYNC, Locks
from retrieval.rows.follow import Follower
from retrieval.rows.schema import Spec
from tests import servers
from tests.live import models, wait_until

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with servers.postgres() as url:
        yield url


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.chroma(tmp_path_factory.mktemp("chroma")) as (url, _):
        yield url


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "STORED", 0)
    for name, seconds in {"EVERY": 0.1, "VERIFIED": 1.0, "RETRY": 0.1, "LONGEST": 0.5}.items():
        monkeypatch.setattr(shared_vectors, name, seconds)
    monkeypatch.setattr(revisions, "EVERY", 0.05)


@dataclass
class House:
    """Processes on one database."""

    database: str
    root: Path
    encoder: Encoder
    made: list[Indexes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return "postgresql+psycopg" + self.database.removeprefix("postgresql")

    def server(self, chroma: str | None, token: str | None = None) -> Indexes:
        home = self.root / f"home-{len(self.made)}"
        found = Indexes(
            sa.create_engine(self.url), home / "chroma", self.encoder, chroma=ChromaServer(chroma, token) if chroma else None
        )
        found.start()
        self.made.append(found)
        return found

    def ids(self) -> set[str]:
        """Chunks of the truth."""
        return {row[0] for row in self.rows("SELECT id FROM vector_chunks")}

    def rows(self, statement: str) -> list[Any]:
        with psycopg.connect(self.database, autocommit=True) as db:
            return db.execute(statement).fetchall()


@pytest.fixture
def house(postgres: str, tmp_path: Path, encoder: Encoder) -> Iterator[Callable[[], House]]:
    made: list[House] = []

    def new() -> House:
        name = f"smalti_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(postgres, autocommit=True) as db:
            db.execute(f"CREATE DATABASE {name}")
        made.append(House(postgres.rsplit("/", 1)[0] + "/" + name, tmp_path / name, encoder))
        return made[-1]

    yield new
    for each in made:
        for indexes in each.made:
            indexes.close()
            indexes._store.engine.dispose()


def client(url: str) -> Any:
    host, port = url.removeprefix("http://").split(":")
    return chromadb.HttpClient(host=host, port=int(port), settings=Settings(anonymized_telemetry=False))


def held(url: str, house: House) -> list[set[str]]:
    """What the collections of a database hold."""
    chroma, found = client(url), []
    for (epoch,) in house.rows("SELECT epoch FROM vector_copies"):
        try:
            found.append(set(chroma.get_collection(f"smalti-{epoch}", embedding_function=None).get(include=[])["ids"]))
        except chromadb.errors.NotFoundError:
            found.append(set())
    return found


def equal(url: str, house: House) -> bool:
    """Whether Chroma holds the truth, once, and was told all."""
    return held(url, house) == [house.ids()] and not house.rows("SELECT 1 FROM vector_pending")


def asks(indexes: Indexes, name: str = "docs") -> bool:
    """Whether a search is answered by Chroma."""
    row = indexes._store.index(f"main.default.{name}")
    assert row is not None
    return indexes._vectors.query(row.id, indexes.encoder.embed(["glass"])[0], 3) is not None


def dense(indexes: Indexes, query: str = "who cuts tiles by hand?", k: int = 10) -> list[tuple[str, float]]:
    return [(p.id, round(p.score, 5)) for p in indexes.search("docs", query, mode="dense", k=k)]


def scanned(indexes: Indexes, monkeypatch: pytest.MonkeyPatch, query: str = "who cuts tiles by hand?") -> list[tuple[str, float]]:
    with monkeypatch.context() as patch:
        patch.setattr(searching, "STORED", 1 << 40)
        return dense(indexes, query)


def test_two_servers_write_and_search_at_once(
    house: Callable[[], House], chroma: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = house()
    one, two = here.server(chroma), here.server(chroma)
    one.add("docs", folder)
    one.sync("docs")
    wait_until(lambda: asks(one) and asks(two))
    assert dense(one) == dense(two) == scanned(one, monkeypatch)
    wrong: list[BaseException] = []
    done = threading.Event()

    def work(indexes: Indexes, name: str) -> None:
        try:
            for turn in range(6):
                (folder / f"{name}.md").write_text(
                    "".join(f"## Part {p}\n\nTurn {turn} of {name}, tile {p}.\n\n" for p in range(4))
                )
                indexes.sync("docs")
        except BaseException as error:
            wrong.append(error)

    def ask(indexes: Indexes) -> None:
        try:
            while not done.is_set():
                assert dense(indexes), "a search finds something at any time"
        except BaseException as error:
            wrong.append(error)

    asking = [threading.Thread(target=ask, args=(each,)) for each in (one, two)]
    writing = [threading.Thread(target=work, args=(each, name)) for each, name in ((one, "a"), (two, "b"))]
    for thread in (*asking, *writing):
        thread.start()
    for thread in writing:
        thread.join()
    done.set()
    for thread in asking:
        thread.join()
    assert not wrong
    for indexes in (one, two):
        assert indexes.sync("docs").unchanged == 5, "what one wrote the other need not"
    assert one.get("docs").chunks == two.get("docs").chunks == len(here.ids()) == 5 + 8
    wait_until(lambda: equal(chroma, here))
    wait_until(lambda: asks(one) and asks(two))
    wait_until(lambda: dense(one) == dense(two) == scanned(one, monkeypatch) == scanned(two, monkeypatch))
    for path in folder.rglob("*.md"):
        path.unlink()
    one.sync("docs")
    wait_until(lambda: equal(chroma, here) and len(here.ids()) == 1)
    wait_until(lambda: [p.source for p in two.search("docs", "glass", k=10)] in ([], ["guides/client.txt"]))


def test_what_one_server_changes_the_other_sees(house: Callable[[], House], chroma: str, folder: Path) -> None:
    here = house()
    one, two = here.server(chroma), here.server(chroma)
    one.add("docs", folder)
    one.sync("docs")
    assert two.search("docs", "blue glass")[0].source == "glass.md"
    (folder / "kiln.md").write_text("# Kiln\n\nThe kiln is fired with olive wood.\n")
    (folder / "glass.md").unlink()
    one.sync("docs")
    wait_until(lambda: two.search("docs", "what is the kiln fired with", k=1)[0].source == "kiln.md")
    assert "glass.md" not in [p.source for p in two.search("docs", "blue glass", k=10)]
    wait_until(lambda: equal(chroma, here))
    one.guards.set("main.default.docs", "folder")
    assert two.search("docs", "kiln", k=10, groups=frozenset({"guides"}))
    assert {p.source.split("/")[0] for p in two.search("docs", "kiln", k=10, groups=frozenset({"guides"}))} == {"guides"}
    one.drop("docs")
    with pytest.raises(NotFound):
        two.search("docs", "kiln")
    wait_until(lambda: held(chroma, here) == [] and not two._finder._memories)
    one.add("docs", folder)
    two.sync("docs")
    assert one.search("docs", "olive wood", groups=None)[0].source == "kiln.md", "another index of the name begins anew"


def until_it_fails(indexes: Indexes, ended: list[BaseException]) -> None:
    try:
        while True:
            indexes.search("docs", "blue glass")
    except BaseException as error:
        ended.append(error)


def test_an_index_is_dropped_while_another_server_searches_it(house: Callable[[], House], chroma: str, folder: Path) -> None:
    here = house()
    one, two = here.server(chroma), here.server(chroma)
    for _ in range(3):
        one.add("docs", folder)
        one.sync("docs")
        ended: list[BaseException] = []

        thread = threading.Thread(target=until_it_fails, args=(two, ended))
        thread.start()
        one.drop("docs")
        thread.join()
        assert [type(error) for error in ended] == [NotFound]
    wait_until(lambda: held(chroma, here) == [])


CHILD = """
import sys
from pathlib import Path
import sqlalchemy as sa
from retrieval import Encoder, Indexes, shared_vectors, vectors
from retrieval.chroma_server import ChromaServer
url, chroma, cache, docs = sys.argv[1:]
vectors.ADD, shared_vectors.EVERY, upsert = 2, 0.01, vectors._upsert
def told(collection, ids, rows):
    for at in range(0, len(ids), 2):
        upsert(collection, ids[at : at + 2], rows[at : at + 2])
        print("told", flush=True)
vectors._upsert = told
indexes = Indexes(sa.create_engine(url), Path("nowhere"), Encoder.load(Path(cache), threads=1), chroma=ChromaServer(chroma))
indexes.start()
indexes.add("docs", Path(docs))
indexes.sync("docs")
sys.stdin.read()
"""


@pytest.mark.parametrize("building", [True, False], ids=["building", "telling"])
def test_a_server_is_killed_while_it_tells_chroma(
    house: Callable[[], House], chroma: str, tmp_path: Path, building: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, docs = house(), tmp_path / "docs"
    docs.mkdir()

    def write(turn: int) -> None:
        for i in range(12):
            parts = "".join(f"## Part {p}\n\nTurn {turn} of file {i}, tile {p}.\n\n" for p in range(4))
            (docs / f"{i}.md").write_text(f"# File {i}\n\n{parts}")

    write(0)
    if not building:
        first = here.server(chroma)
        first.add("docs", docs)
        first.sync("docs")
        wait_until(lambda: equal(chroma, here))
        first.close()
        write(1)
    command = [sys.executable, "-c", CHILD, here.url, chroma, str(models()), str(docs)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
    assert child.stdout is not None
    assert child.stdin is not None
    for _ in range(5):
        assert child.stdout.readline() == "told\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    child.stdin.close()
    other = here.server(chroma)
    assert dense(other), "what is there is found at once"
    assert other.sync("docs").chunks == 48
    wait_until(lambda: equal(chroma, here))
    wait_until(lambda: asks(other))
    assert dense(other, "tile 3 of file 7") == scanned(other, monkeypatch, "tile 3 of file 7")


def test_a_chroma_server_that_is_killed_and_comes_back_empty(
    house: Callable[[], House], tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = house()
    with servers.chroma(tmp_path / "first") as (url, pid):
        one, two = here.server(url), here.server(url)
        one.add("docs", folder)
        one.sync("docs")
        wait_until(lambda: equal(url, here) and asks(one) and asks(two))
        before = dense(one)
        os.kill(pid, signal.SIGKILL)
        assert dense(one) == dense(two) == before, "searches go on"
    for indexes in (one, two):
        wait_until(lambda indexes=indexes: "does not answer" in indexes.get("docs").warning)
        assert url in indexes.trouble()
        assert not asks(indexes)
    (folder / "kiln.md").write_text("# Kiln\n\nThe kiln is fired with olive wood.\n")
    assert one.sync("docs").added == 1
    assert one.search("docs", "olive wood", mode="dense")[0].source == "kiln.md"
    with servers.chroma(tmp_path / "second", int(url.rsplit(":", 1)[1])):
        wait_until(lambda: equal(url, here) and asks(one) and asks(two))
        assert dense(one) == dense(two) == scanned(one, monkeypatch)
        assert (one.trouble(), two.get("docs").warning) == ("", "")
    told = [record.message for record in caplog.records if "does not answer" in record.message]
    assert 2 <= len(told) <= 8, "it is told when it begins, not with every search"


def test_a_chroma_server_that_hangs(
    house: Callable[[], House], tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections and says nothing, as on a machine that swaps."""
    monkeypatch.setattr(shared_vectors, "ASKING", 0.3)
    monkeypatch.setattr(shared_vectors, "TELLING", 2.0)
    monkeypatch.setattr(ChromaServer.check, "__defaults__", (0.5,))
    here = house()
    with servers.chroma(tmp_path / "hanging") as (url, pid):
        one = here.server(url)
        one.add("docs", folder)
        one.sync("docs")
        wait_until(lambda: asks(one))
        before = dense(one)
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(5):
                assert dense(one) == before
            (folder / "kiln.md").write_text("# Kiln\n\nThe kiln is fired with olive wood.\n")
            one.sync("docs")
            assert one.search("docs", "olive wood", mode="dense")[0].source == "kiln.md"
            wait_until(lambda: "does not answer" in one.trouble())
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: one.trouble() == "" and equal(url, here) and asks(one))
        assert one.search("docs", "olive wood", mode="dense")[0].source == "kiln.md"


@pytest.mark.parametrize("harm", ["gone", "older", "rows", "another epoch", "emptied"])
def test_a_collection_that_is_not_what_the_database_says_is_built_anew(
    house: Callable[[], House], chroma: str, folder: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = house()
    first = here.server(chroma)
    first.add("docs", folder)
    first.sync("docs")
    (folder / "glass.md").write_text((folder / "glass.md").read_text().replace("Cobalt", "Copper"))
    first.sync("docs")
    wait_until(lambda: equal(chroma, here))
    first.close()
    direct = client(chroma)
    [(epoch,)] = here.rows("SELECT epoch FROM vector_copies")
    collection = direct.get_collection(f"smalti-{epoch}", embedding_function=None)
    known = dict(collection.metadata)
    if harm == "gone":
        direct.delete_collection(f"smalti-{epoch}")
    elif harm == "older":
        collection.modify(metadata={**known, "generation": known["generation"] - 1})
    elif harm == "another epoch":
        collection.modify(metadata={**known, "epoch": "of another"})
    else:
        ids = collection.get(include=[])["ids"]
        collection.delete(ids=ids if harm == "emptied" else ids[:1])
    second = here.server(chroma)
    assert dense(second), "meanwhile what is in memory is searched"
    wait_until(lambda: equal(chroma, here) and asks(second))
    assert dense(second) == scanned(second, monkeypatch)
    assert here.rows("SELECT epoch FROM vector_copies") != [(epoch,)]
    assert f"smalti-{epoch}" not in [each.name for each in direct.list_collections()], "what it was is removed"


def test_two_databases_share_a_chroma_server(house: Callable[[], House], chroma: str, folder: Path, tmp_path: Path) -> None:
    foreign = client(chroma).create_collection(f"foreign-{uuid.uuid4().hex}", embedding_function=None)
    foreign.upsert(ids=["x"], embeddings=[[1.0, 2.0]])
    (other := tmp_path / "other").mkdir()
    (other / "bees.md").write_text("# Bees\n\nBees dance to tell where flowers are.\n")
    here, there = house(), house()
    one, two = here.server(chroma), there.server(chroma)
    for indexes, docs in ((one, folder), (two, other)):
        indexes.add("docs", docs)
        indexes.sync("docs")
    wait_until(lambda: equal(chroma, here) and equal(chroma, there) and asks(one) and asks(two))
    assert [p.source for p in two.search("docs", "glass", mode="dense")] == ["bees.md"]
    one.drop("docs")
    wait_until(lambda: held(chroma, here) == [])
    assert equal(chroma, there)
    assert asks(two)
    assert foreign.get(include=[])["ids"] == ["x"]


def test_a_copy_of_a_database_leaves_the_collections_of_the_first_alone(
    house: Callable[[], House], postgres: str, chroma: str, folder: Path
) -> None:
    here = house()
    one = here.server(chroma)
    one.add("docs", folder)
    one.sync("docs")
    wait_until(lambda: equal(chroma, here))
    one.close()
    one._store.engine.dispose()
    there = house()
    name, copied = (each.database.rsplit("/", 1)[1] for each in (there, here))
    with psycopg.connect(postgres, autocommit=True) as db:
        db.execute(f"DROP DATABASE {name}")
        db.execute(f"CREATE DATABASE {name} TEMPLATE {copied}")
    two = there.server(chroma)
    wait_until(lambda: equal(chroma, there) and asks(two))
    two.drop("docs")
    wait_until(lambda: held(chroma, there) == [])
    assert equal(chroma, here)


def test_servers_on_one_database_without_chroma_search_memory(house: Callable[[], House], folder: Path) -> None:
    here = house()
    one, two = here.server(None), here.server(None)
    one.add("docs", folder)
    one.sync("docs")
    assert dense(one) == dense(two)
    assert here.rows("SELECT 1 FROM vector_pending") == [], "nobody need be told"
    assert list(here.root.rglob("chroma.sqlite3")) == []
    assert one.get("docs").warning == ""


# What the database alone shares


def test_a_lock_is_one_processs_and_ends_with_it(house: Callable[[], House]) -> None:
    here = house()
    one, two, three = (Locks(sa.create_engine(here.url)) for _ in range(3))
    try:
        with one.holding(SYNC, 7):
            assert not two.take(SYNC, 7)
            assert not one.take(SYNC, 7), "nor another thread's"
            assert two.held(SYNC) == one.held(SYNC) == {7}
            assert two.take(SYNC, 8)
            assert two.take(COPY, 7)
        assert two.take(SYNC, 7)

        def wait() -> None:
            with one.holding(SYNC, 7):
                pass

        waiting = threading.Thread(target=wait)
        waiting.start()
        two.close()
        waiting.join(60)
        assert not waiting.is_alive(), "who waits has it once the process that held it ends"
        wait_until(lambda: one.take(COPY, 7))
        here.rows("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        wait_until(lambda: three.held(COPY) == set())
        assert one.take(SYNC, 9), "a session that broke is made anew"
        assert three.held(COPY) == {7}, "with the locks it had"
        one.leave(COPY, 7)
        one.leave(SYNC, 9)
        assert three.held(COPY) == three.held(SYNC) == set()
    finally:
        for locks in (one, two, three):
            locks.close()
            locks._engine.dispose()
    with pytest.raises(RetrievalError, match="stopping"), one.holding(SYNC, 1):
        pass


def spec(source: str = "", **more: Any) -> Spec:
    kind = "DELTA_SYNC" if source else "DIRECT_ACCESS"
    columns = {} if source else {"id": "string", "text": "string"}
    return Spec("id", kind, "FULL_TEXT", columns=columns, source=source, **more)


async def words(indexes: Indexes, name: str, query: str) -> list[str]:
    return [p.id for p in await indexes.asearch(name, query, mode="lexical", groups=None, k=50)]


async def until(found: Callable[[], Any]) -> None:
    for _ in range(1200):
        if await found():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not happen in time")


@pytest.mark.anyio
async def test_rows_that_one_server_writes_the_other_sees(house: Callable[[], House]) -> None:
    here = house()
    one, two = here.server(None), here.server(None)
    one.over_rows.endpoints.create("e", "STANDARD", "root")
    name = "main.default.things"
    one.over_rows.create(name, "e", spec(), "root")

    async def put(indexes: Indexes, *ids: str, text: str = "a glass tile") -> None:
        rows = [{"id": each, "text": text} for each in ids]
        assert (await indexes.over_rows.upsert(name, rows, indexes.embed, None))["status"] == "SUCCESS"

    await put(one, "a", "b")
    assert await words(two, name, "glass") == ["a", "b"]
    await put(two, "c")
    one.over_rows.delete(name, ["a"])
    await until(lambda: is_(words(one, name, "glass"), ["b", "c"]))
    for _ in range(20):
        await put(one, "d")
        await until(lambda: is_(words(two, name, "glass"), ["b", "c", "d"]))
        one.over_rows.delete(name, ["d"])
        assert "d" not in await words(two, name, "glass"), "what is deleted is shown no more, nowhere"
    # Both write the same rows at once: each is there once, as one of them had it.
    keys = [str(n) for n in range(40)]
    await asyncio.gather(*(put(each, *keys, text=f"grout {n}") for n in range(3) for each in (one, two)))
    assert one.over_rows.store.count(one.over_rows.get(name).id) == 42
    for each in (one, two):
        await until(lambda each=each: is_(words(each, name, "grout"), sorted(keys)))
    one.over_rows.drop(name)
    with pytest.raises(NotFound):
        await words(two, name, "glass")
    await until(lambda: is_(asyncio.to_thread(lambda: two.over_rows.store._memories), {}))


async def is_(found: Any, wanted: Any) -> bool:
    got = await found
    return (sorted(got) if isinstance(got, list) else got) == wanted


@pytest.mark.anyio
async def test_two_servers_follow_a_table_and_one_of_them_reads_it(house: Callable[[], House], tmp_path: Path) -> None:
    here, table, embedded = house(), tmp_path / "t.jsonl", list[str]()
    one, two = here.server(None), here.server(None)

    def write(count: int) -> None:
        scratch = tmp_path / "scratch"
        scratch.write_text("\n".join(json.dumps({"id": str(i), "text": f"tile {i}"}) for i in range(count)))
        scratch.replace(table)

    async def embed(endpoint: str, texts: Sequence[str], who: Any) -> np.ndarray:
        embedded.extend(texts)
        return np.ones((len(texts), 4), np.float32)

    write(30)
    one.over_rows.tables.add("main.default.source", str(table))
    one.over_rows.endpoints.create("e", "STANDARD", "root")
    name = "main.default.tiles"
    followed = Spec(
        "id", "DELTA_SYNC", source="main.default.source", pipeline="CONTINUOUS", text="text", model="m", query_model="m"
    )
    index = one.over_rows.create(name, "e", followed, "root")
    following = [Follower(each.over_rows, embed, lambda name: name) for each in (one, two)]

    async def synced(rows: int) -> bool:
        for each in following:
            await each.look()
        now = two.over_rows.standing(name)
        assert now is not None
        return not now.syncing and (one.over_rows.store.report(index.id) or {}).get("rows") == rows

    for count in (30, 45, 60):
        write(count)
        await until(lambda count=count: synced(count))
        assert len(embedded) == len(set(embedded)) == count == one.over_rows.store.count(index.id)
    for each in following:
        assert await each.look() == [], "neither reads again what the other has read"
    assert one.over_rows.store.begin(index.id)
    assert not two.over_rows.store.begin(index.id)
    assert [each.syncing for each in two.over_rows.list()] == [True]
    one.over_rows.store.end(index.id)
    assert two.over_rows.store.begin(index.id)
    two.over_rows.store.end(index.id)
