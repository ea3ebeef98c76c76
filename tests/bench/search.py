"""How fast searches are in a large index, without the question's embedding, and how exact.

    python -m tests.bench.search [--rows 50000] [--cores 0,1] [--home FOLDER] [--straight] [--cold]

Prints one JSON object. The rows are generated: words by Zipf's law, vectors in clusters as real ones are. Everything else
is the product: database, Chroma, memory, filters, reading of the passages found. `--straight` writes the rows into the database
without a sync, since Chroma takes an hour for a million; `--home` keeps the state, and uses what is there. `read_s` is a start
from the database alone, `start_s` one with the snapshot that was written meanwhile, which is what is searched then; with
`--cold` neither finds its file in the system's memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine

from retrieval import Indexes, words
from retrieval.chunk import Chunk
from retrieval.late import Asked
from retrieval.memory import Snapshot, best
from retrieval.search import search
from retrieval.store import Prepared
from retrieval.types import Document
from tests.bench.ingest import engine_at
from tests.bench.timing import timed

WORDS = 30_000


class Generated:
    """Stands for the encoder: a text's vector is a cluster's and noise, its hundred word pieces are noise."""

    fingerprint, dimension = "generated", 384

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self._clusters = rng.standard_normal((400, 384)).astype(np.float32)

    def embed(self, texts: Any) -> np.ndarray:
        out = np.empty((len(texts), 384), np.float32)
        for i, text in enumerate(texts):
            seed = hash(text) & 0xFFFFFFFF
            out[i] = self._clusters[seed % 400] + 0.8 * np.random.default_rng(seed).standard_normal(384, np.float32)
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    def embed_pieces(self, texts: Any) -> tuple[np.ndarray, list[bytes]]:
        return self.embed(texts), [np.random.default_rng(hash(text) & 0xFFFFFFFF).bytes(100 * 48) for text in texts]

    def token_starts(self, text: str) -> np.ndarray:
        return np.flatnonzero(np.frombuffer((" " + text).encode("ascii", "replace")[:-1], np.uint8) <= 32)


def write(folder: Path, rows: int, rng: np.random.Generator) -> None:
    names = np.array([f"w{number:x}q" for number in range(WORDS)])
    odds = 1 / np.arange(1, WORDS + 1) ** 1.05
    odds /= odds.sum()
    for at in range(0, rows, 500):
        part = folder / f"part{at // 500 % 10}"
        part.mkdir(parents=True, exist_ok=True)
        drawn = names[rng.choice(WORDS, (500, 140), p=odds)]
        (part / f"{at}.md").write_text("\n\n".join(f"# s{at + i}\n\n{' '.join(row)}." for i, row in enumerate(drawn)))


def put(indexes: Indexes, rows: int, rng: np.random.Generator) -> None:
    """Writes chunks as a sync would, 500 a document, without reading files and without telling Chroma."""
    store, encoder = indexes._store, Generated()
    index_id = indexes._row("bench").id
    odds = 1 / np.arange(1, WORDS + 1) ** 1.05
    names = np.array([f"w{number:x}q" for number in range(WORDS)])
    for at in range(0, rows, 500):
        source = f"part{at // 500 % 10}/{at}.md"
        texts = [" ".join(row) + "." for row in names[rng.choice(WORDS, (500, 140), p=odds / odds.sum())]]
        ids = [f"{at + i:032x}" for i in range(500)]
        cut = [Chunk(text, i * 1000, i * 1000 + len(text), (f"s{at + i}",)) for i, text in enumerate(texts)]
        document = Document(source, "main.default.bench", source, source, "", "text/markdown", "")
        terms = [words.encode(text, f"s{at + i}", 0) for i, text in enumerate(texts)]
        prepared = Prepared(document, 0, 0, "", "", cut, ids, [""] * 500, ids, terms)
        vectors, pieces = encoder.embed_pieces(texts)
        store.write(index_id, prepared, [(v.tobytes(), p) for v, p in zip(vectors, pieces, strict=True)])
    store.told(index_id, 1 << 60, "", 0)


def resident_mb() -> float:
    """Megabytes of this process' memory, what it has mapped included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def forget(path: Path) -> None:
    """Takes a file out of the system's memory. Not while SQLite has it open."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def start(home: Path, encoder: Any, cold: bool, told: dict[str, Any], name: str) -> tuple[Engine, Indexes, Snapshot]:
    """Opens the state and reads the index into memory; how long that took, and how much it holds, comes into `told`."""
    for path in (home / "smalti.db", *home.glob("snapshots/*")) if cold else ():
        forget(path)
    before, engine = resident_mb(), engine_at(home)
    indexes = Indexes(engine, home / "chroma", encoder, home / "snapshots")
    memory = indexes._finder.memory(indexes._row("bench").id)
    began, busy = time.perf_counter(), time.process_time()
    rows = memory.refresh()
    took = {"s": time.perf_counter() - began, "cpu_s": time.process_time() - busy, "memory_mb": resident_mb() - before}
    told |= {f"{name}_{unit}": round(each, 2) for unit, each in took.items()}
    return engine, indexes, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--cores", default="0,1")
    parser.add_argument("--home", type=Path, help="a folder for the state, kept for the next run")
    parser.add_argument("--straight", action="store_true", help="write rows without a sync")
    parser.add_argument("--cold", action="store_true", help="take the files out of the system's memory before each start")
    options = parser.parse_args()
    cores = {int(core) for core in options.cores.split(",")}
    if os.sched_getaffinity(0) != cores:
        os.sched_setaffinity(0, cores)  # before numpy counts them
        os.execv(sys.executable, [sys.executable, "-m", "tests.bench.search", *sys.argv[1:]])
    rng = np.random.default_rng(1)
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        home = options.home or Path(name)
        encoder: Any = Generated()
        if not (home / "smalti.db").exists():
            (home / "docs").mkdir(parents=True)
            indexes = Indexes(engine_at(home), home / "chroma", encoder)
            indexes.add("bench", home / "docs")
            if options.straight:
                put(indexes, options.rows, rng)
            else:
                write(home / "docs", options.rows, rng)
                told["sync_s"] = round(indexes.sync("bench").seconds, 1)
            indexes.close()
        shutil.rmtree(home / "snapshots", ignore_errors=True)
        engine, indexes, rows = start(home, encoder, options.cold, told, "read")
        told["rows"] = rows.live
        began = time.perf_counter()
        indexes.close()
        told["write_s"] = round(time.perf_counter() - began, 2)
        told["snapshot_mb"] = round(sum(path.stat().st_size for path in home.glob("snapshots/*")) / 1e6)
        engine.dispose()
        del rows, indexes
        gc.collect()
        _, indexes, rows = start(home, encoder, options.cold, told, "start")
        row = indexes._row("bench")
        slots = rng.choice(rows.live, 300, replace=False)
        noise = rng.standard_normal((300, 384)).astype(np.float32)
        vectors = rows.matrix[slots] + 0.03 * noise
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        found = indexes._store.passages(row.name, [rows.keys[slot] for slot in slots])
        texts = [found[rows.keys[slot]].text.split() for slot in slots]
        asked = [" ".join(rng.choice(text, 10)) for text in texts]
        spans = [tuple(word.span() for word in re.finditer(r"\w+", text)) for text in asked]
        pieces = [rng.standard_normal((len(each), 384)).astype(np.float32) / 384**0.5 for each in spans]
        both = [(text, Asked(*rest)) for text, rest in zip(asked, zip(vectors, pieces, spans, strict=True), strict=True)]

        def run(mode: str, **more: Any) -> Any:
            return lambda each: indexes._finder.find(row, each[0], each[1], 10, mode, **more)

        for mode in ("dense", "lexical", "hybrid"):
            told[mode] = timed(run(mode), both, warm=10)
        exact = [set(best(rows.matrix[: rows.size] @ vector, 10)) for vector in vectors]
        nearest = lambda vector, count: indexes._vectors.query(row.id, vector, count)  # noqa: E731
        near = [
            {hit.slot for hit in search(rows, "", vector, 10, "dense", nearest=nearest, collapse=False)} for vector in vectors
        ]
        told["dense_recall@10"] = round(float(np.mean([len(a & b) / 10 for a, b in zip(exact, near, strict=True)])), 4)
        sources = [f"part{number}/{at}.md" for number in range(10) for at in range(number * 500, options.rows, 5000)]
        for share in (0.9, 0.1, 0.002):
            column = "source"
            chosen = sources[: max(1, round(len(sources) * share))] if share >= 0.01 else sources[:1]
            extra = {"page": None} if share >= 0.01 else {}
            if len(chosen) > 1000:  # a list may not be longer
                chosen, column = [f"part{number}" for number in range(round(share * 10))], "folder"
            where = {column: chosen, **{k: v for k, v in extra.items() if v is not None}}
            if share < 0.01:
                begins = sorted(
                    b for a, b in zip(rows.fields.column("source"), rows.fields.column("start"), strict=True) if a == chosen[0]
                )
                where["start <"] = begins[min(len(begins) - 1, max(1, int(options.rows * share)))]
            told[f"filtered_{share:.1%}"] = {
                "dense": timed(run("dense", filters=where), both, warm=10),
                "hybrid": timed(run("hybrid", filters=where), both, warm=10),
            }
        indexes.close()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
