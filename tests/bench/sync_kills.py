"""Is an index whole however often its sync is killed, and whatever a second process does to its state?

    python -m tests.bench.sync_kills [--kills 1000] [--second-processes 100] [--seed 0]

A folder of documents changes at random; a process that syncs it is killed with SIGKILL at a random moment. After every kill the
database is read as another process sees it: a document must be there as it was before or as it is now, its chunks complete,
in order, each the very text at its place, none twice. After every tenth, a sync is left alone: the index must then hold the
folder and nothing else, in the database, in Chroma and in what searches find. Then second processes are started on the
state of a server that syncs: `serve` must be refused in words, commands must go through the server.

Vectors are generated, so that kills meet reading and writing instead of the encoder. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import sqlalchemy as sa

from retrieval import Indexes
from retrieval.late import Asked
from retrieval.tables import chunks, documents, pieces, terms
from tests.bench.ingest import engine_at
from tests.live import smalti, start, stop

FILES = 60
HEADINGS = {"#", "Part", *"01234567"}


class Hashed:
    """Stands for the encoder: a text's vector is drawn by its hash."""

    fingerprint, dimension, threads = "hashed", 384, 1

    def embed(self, texts: Any) -> np.ndarray:
        drawn = [np.random.default_rng(crc32(text.encode())).standard_normal(384, np.float32) for text in texts]
        return np.array([row / np.linalg.norm(row) for row in drawn], np.float32).reshape(len(texts), 384)

    def embed_pieces(self, texts: Any) -> tuple[np.ndarray, list[bytes]]:
        return self.embed(texts), [b"\x01" * 48] * len(texts)

    def ask(self, text: str) -> Asked:
        return Asked(self.embed([text])[0], np.empty((0, 384), np.float32), ())

    def token_starts(self, text: str) -> np.ndarray:
        return np.flatnonzero(np.frombuffer((" " + text).encode("ascii", "replace")[:-1], np.uint8) <= 32)


def opened(home: Path) -> Indexes:
    encoder: Any = Hashed()
    return Indexes(engine_at(home), home / "chroma", encoder)


def synced(home: Path) -> None:
    """What is killed."""
    indexes = opened(home)
    indexes.sync("kills")
    indexes.close()


class Folder:
    """Documents that change, and what each has been since the last whole sync."""

    def __init__(self, path: Path, draw: random.Random) -> None:
        self.path, self._draw, self._count = path, draw, 0
        self.now: dict[str, str] = {}
        self.been: dict[str, set[str | None]] = {}
        path.mkdir()
        for number in range(FILES):
            self._write(f"{number}.md")

    def _write(self, name: str) -> None:
        self._count += 1
        parts = [f"# Part {part}\n\n" + " ".join(f"w{self._draw.randrange(4000)}" for _ in range(120)) for part in range(8)]
        text = f"unique{self._count}only is here.\n\n" + "\n\n".join(parts[: self._draw.randint(1, 8)]) + "\n"
        self.been.setdefault(name, set()).add(self.now.get(name))
        (self.path / name).write_text(text)
        self.now[name] = text

    def change(self) -> None:
        for name in self._draw.sample(sorted(self.now), 8):
            if self._draw.random() < 0.25:
                self.been.setdefault(name, set()).add(self.now.pop(name))
                (self.path / name).unlink()
            else:
                self._write(name)
        while len(self.now) < FILES:
            self._write(f"{self._count + 1000}.md")


def faults(engine: sa.Engine, folder: Folder) -> list[str]:
    """What is wrong in the database, at any moment."""
    told = []
    c, d = chunks.c, documents.c
    with engine.connect() as db:  # one transaction, one state
        held = {row.id: row for row in db.execute(sa.select(d.id, d.source, d.text))}
        rows = db.execute(
            sa.select(c.seq, c.id, c.document_id, c.position, c.text, c.start, c.end, sa.func.length(c.vector))
        ).all()
        beside = [set(db.execute(sa.select(table.c.seq)).scalars()) for table in (terms, pieces)]
    parts: dict[str, list[Any]] = {}
    for row in rows:
        parts.setdefault(row.document_id, []).append(row)
    if set(parts) - set(held):
        told.append("chunks without a document")
    if any(seqs != {row.seq for row in rows} for seqs in beside):
        told.append("words or word pieces and chunks differ")
    told += [
        f"{source} is there {count} times" for source, count in Counter(row.source for row in held.values()).items() if count > 1
    ]
    for key, document in held.items():
        mine = sorted(parts.get(key, ()), key=lambda row: row.position)
        if [row.position for row in mine] != list(range(len(mine))) or not mine:
            told.append(f"{document.source} has the chunks {[row.position for row in mine]}")
        if any(document.text[row.start : row.end] != row.text or row[-1] != 4 * 384 for row in mine):
            told.append(f"{document.source} has a chunk that is not its text")
        # All words of the document are in its chunks: none is lost. Headings are kept beside the text.
        if set(document.text.split()) - set(" ".join(row.text for row in mine).split()) - HEADINGS:
            told.append(f"{document.source} lacks text")
        if document.text.strip() not in {
            (text or "").strip() for text in (*folder.been.get(document.source, ()), folder.now.get(document.source))
        }:
            told.append(f"{document.source} is neither old nor new")
    return told


def unlike(home: Path, folder: Folder) -> list[str]:
    """What is wrong after a sync that was left alone."""
    indexes = opened(home)
    try:
        indexes.sync("kills")
        told = faults(indexes._store.engine, folder)
        with indexes._store.reading() as db:
            held = {row.source: row.text.strip() for row in db.execute(sa.select(documents.c.source, documents.c.text))}
        if held != {name: text.strip() for name, text in folder.now.items()}:
            told.append("the index is not the folder")
        row = indexes._row("kills")
        collection = indexes._vectors.open(row.id)
        there = set(collection.get(include=[])["ids"])
        with indexes._store.reading() as db:
            if there != set(db.execute(sa.select(chunks.c.id)).scalars()):
                told.append("Chroma and the database differ")
        for name, text in folder.now.items():
            found = indexes.search("kills", text.split()[0], k=5, mode="lexical")
            if [passage.source for passage in found] != [name]:
                told.append(f"{name} is found as {[passage.source for passage in found]}")
        gone = {text.split()[0] for texts in folder.been.values() for text in texts if text} - {
            t.split()[0] for t in folder.now.values()
        }
        told += [f"{word} is deleted and found" for word in gone if indexes.search("kills", word, k=5, mode="lexical")]
        folder.been.clear()
        return told
    finally:
        indexes.close()


def killed(home: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["retrieval.index", "chromadb", "Stemmer"])
    folder = Folder(home / "docs", draw)
    indexes = opened(home)
    indexes.add("kills", folder.path)
    engine = indexes._store.engine
    told = unlike(home, folder)
    whole = 0.0
    for _ in range(3):  # the first one loads the modules
        folder.change()
        began = time.monotonic()
        process = context.Process(target=synced, args=(home,))
        process.start()
        process.join()
        whole = time.monotonic() - began
    done: Counter[str] = Counter()
    while done["kills"] < kills and not told:
        folder.change()
        process = context.Process(target=synced, args=(home,))
        process.start()
        process.join(draw.uniform(0.0, 1.1 * whole))
        if process.is_alive():
            assert process.pid is not None
            process.kill()
            done["kills"] += 1
        process.join()
        done["finished"] += process.exitcode == 0
        told += [] if process.exitcode in (0, -9) else [f"a sync ended with {process.exitcode}"]
        process.close()
        told += faults(engine, folder)
        if done["kills"] and done["kills"] % 10 == 0:
            told += unlike(home, folder)
            done["checked"] += 1
            print(dict(done), file=sys.stderr, flush=True)
    engine.dispose()
    return {**done, "sync_s": round(whole, 2), "faults": told}


def beside(home: Path, trials: int, draw: random.Random) -> dict[str, Any]:
    """Second processes on the state of a server that syncs all the while."""
    docs = home / "docs"
    docs.mkdir(parents=True)
    for number in range(20):
        (docs / f"{number}.md").write_text(f"# {number}\n\nThe number {number} is written here.\n")
    live = start(home / "state", docs)
    done: Counter[str] = Counter()
    told: list[str] = []
    ended = threading.Event()

    def edit() -> None:
        edits = 0
        while not ended.wait(0.2):
            edits += 1
            (docs / f"{edits % 20}.md").write_text(f"# {edits}\n\nThe number {edits} is written here.\n")
            with live.client() as client:
                if client.post("/api/2.0/smalti/indexes", json={"name": "docs"}).status_code != 200:
                    told.append("the server's own sync failed")

    thread = threading.Thread(target=edit)
    thread.start()
    try:
        for _ in range(trials):
            what = draw.choice(("serve", "sync", "query"))
            command = {
                "serve": ("serve", "--port", "0", "--docs", str(docs)),
                "sync": ("index", "sync", "docs"),
                "query": ("index", "query", "docs", "which number is written?", "--json"),
            }[what]
            out = smalti(*command, home=home / "state")
            done[what] += 1
            good = out.returncode == 0 if what != "serve" else out.returncode != 0 and "in use by process" in out.stderr
            if not good or "Traceback" in out.stderr or live.process.poll() is not None:
                told.append(f"{what}: {out.returncode} {out.stderr[-300:]}")
    finally:
        ended.set()
        thread.join()
        stop(live)
    return {**done, "faults": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--second-processes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        os.mkdir(home / "kills")
        told = {"killed": killed(home / "kills", options.kills, draw)}
        told["second_processes"] = beside(home / "beside", options.second_processes, draw)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
