"""How fast a folder becomes an index, against the bare encoder on the same chunks in the same run; then searches.

    python tests/bench/ingest.py --docs FOLDER [--chunks N] [--threads N]

Prints one JSON object. `ratio` is ingestion's chunks a second (reading, cutting, embedding, every write) over the bare
encoder's; the processor's time of a chunk is given too, which a machine that others use spoils less. `--chunks` copies the
folder, each copy's text made different, until there are about that many chunks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import Engine

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from retrieval import Encoder, Indexes
from retrieval.chunk import context, embedded_text
from serving.state import open_database
from tests.bench.timing import timed


def replicate(docs: Path, target: Path, factor: float) -> None:
    """`factor` copies of the folder; a copy is made new by renaming one word in five, so that no vector is reused."""
    files = [p for p in sorted(docs.rglob("*.md")) if p.is_file()]
    for copy in range(int(factor) + 1):
        chosen = files if copy < int(factor) else files[: round(len(files) * (factor - int(factor)))]
        rng = random.Random(copy)
        for path in chosen:
            text = path.read_text(errors="replace")
            if copy:
                text = re.sub(r"\b[a-z]{5,}\b", lambda m: m[0][::-1] if rng.random() < 0.2 else m[0], text)  # noqa: B023
            place = target / str(copy) / path.relative_to(docs)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)


def engine_at(home: Path) -> Engine:
    return open_database(f"sqlite:///{home}/smalti.db")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=os.environ.get("SMALTI_BENCH_DOCS", "docs"), help="folder of documents")
    parser.add_argument("--chunks", type=int, default=0, help="about this many chunks, by copying; 0: the folder as it is")
    parser.add_argument("--threads", type=int, default=None, help="encoder threads")
    parser.add_argument("--sample", type=int, default=0, help="chunks the bare encoder is timed on; 0: all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        Encoder.load(home / "encoder", threads=1).close()
        began = time.perf_counter()
        encoder = Encoder.load(home / "encoder", threads=options.threads)
        load = time.perf_counter() - began
        docs = Path(options.docs).resolve()
        indexes = Indexes(engine_at(home), home / "chroma", encoder)
        if options.chunks:
            # About 620 bytes a chunk in technical Markdown.
            size = sum(p.stat().st_size for p in docs.rglob("*.md"))
            replicate(docs, home / "docs", options.chunks / (size / 620))
            docs = home / "docs"
        indexes.add("bench", docs)
        busy = time.process_time()
        report = indexes.sync("bench")
        busy = (time.process_time() - busy) / max(report.embedded, 1)
        began = time.perf_counter()
        again = indexes.sync("bench")
        unchanged = time.perf_counter() - began

        rows = list(indexes.rows("bench"))
        texts = list({embedded_text(context(row["title"], row["heading"]), row["text"], encoder.token_starts) for row in rows})
        random.Random(0).shuffle(texts)
        texts = texts[: options.sample or None]
        began, alone = time.perf_counter(), time.process_time()
        encoder.embed(texts)
        bare = len(texts) / (time.perf_counter() - began)
        alone = (time.process_time() - alone) / len(texts)
        ours = report.embedded / report.seconds

        indexes.close()
        began = time.perf_counter()
        indexes = Indexes(engine_at(home), home / "chroma", encoder)
        indexes.open()
        opened = time.perf_counter() - began
        rng = random.Random(1)
        words = [found for row in rng.choices(rows, k=400) if len(found := re.findall(r"\w+", row["text"])) > 15]
        queries = [" ".join(rng.sample(found, 8)) for found in words]
        asked = {query: encoder.ask(query) for query in queries}
        indexes.search("bench", queries[0])
        row = indexes._row("bench")
        without = timed(lambda q: indexes._finder.find(row, q, asked[q], 5, "hybrid"), queries)
        whole = timed(lambda q: indexes.search("bench", q), queries)
        indexes.close()
        encoder.close()
        shutil.rmtree(home / "chroma", ignore_errors=True)
    result = {
        "documents": report.added,
        "chunks": report.chunks,
        "embedded": report.embedded,
        "threads": encoder.threads,
        "seconds": round(report.seconds, 2),
        "ingest_chunks_per_s": round(ours, 1),
        "encoder_chunks_per_s": round(bare, 1),
        "ratio": round(ours / bare, 3),
        "ingest_cpu_ms_a_chunk": round(busy * 1e3, 2),
        "encoder_cpu_ms_a_chunk": round(alone * 1e3, 2),
        "unchanged_sync_s": round(unchanged, 3),
        "unchanged_embedded": again.embedded,
        "encoder_load_s": round(load, 3),
        "open_s": round(opened, 3),
        "search_without_embedding": without,
        "search": whole,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
