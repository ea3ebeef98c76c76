"""Bringing an index up to date with its folder: only what changed is read, only new text is embedded.

Reading, embedding and writing overlap. A document is written in one transaction, Chroma is told after it; killed at any
moment, the next sync goes on from what was written.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import chunk as chunking
from retrieval import late, words
from retrieval import load as loading
from retrieval.chunk_reads import Embedded
from retrieval.embed import Encoder
from retrieval.errors import SourceError
from retrieval.load import Found, Loaded, Skip
from retrieval.store import Prepared, Store, Stored, digest
from retrieval.types import Document, Skipped, SyncReport
from retrieval.vectors import Nearest
from retrieval.worker import Workers

log = logging.getLogger("smalti.retrieval")

GROUP = 512
"""Chunks embedded together: enough to sort by length and to fill every core, few enough to show progress."""
READERS = 3
"""Files read and cut at once."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sync is. `done` and `total` count files that need reading; `seconds` since it began."""

    index: str
    done: int
    total: int
    chunks: int
    embedded: int
    seconds: float

    @property
    def rate(self) -> float:
        """Chunks a second."""
        return self.chunks / self.seconds if self.seconds else 0.0

    @property
    def remaining(self) -> float | None:
        """Seconds left at the present rate, None before the first file is done."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None


@dataclass(slots=True)
class _Read:
    """What reading one file came to: `prepared`, or `unchanged` bytes, or a reason for neither."""

    found: Found
    prepared: Prepared | None = None
    skip: Skip | None = None


class Sync:
    """One run over one index. `report` is filled as it goes; `changed` is called when documents were written or removed."""

    def __init__(
        self,
        store: Store,
        vectors: Nearest,
        encoder: Encoder,
        workers: Workers,
        index_id: int,
        index: str,
        progress: Callable[[Progress], None] | None,
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        self._told = changed
        self.store, self.vectors, self.encoder, self.workers = store, vectors, encoder, workers
        self.index_id, self.index, self._progress = index_id, index, progress
        self.plan = store.chunking(index_id)
        self.versions = f"{loading.VERSION}:{self.plan.version}:{words.VERSION}:{late.VERSION}:{encoder.fingerprint}"
        self.report = SyncReport(index)
        self._skipped: dict[str, dict[str, Any]] = {}
        self._began = time.monotonic()
        self._done = self._total = self._chunks = 0
        self._lock = threading.Lock()  # of the counters: the reader's and the writer's thread both count

    def run(self, root: Path) -> SyncReport:
        """Raises SourceError when the folder is missing or nothing in it can be indexed."""
        self._began = time.monotonic()
        found = list(loading.walk(root))
        had = self.store.manifest(self.index_id)
        todo = list(self._changed(found, had))
        self._total = len(todo)
        self._tell()
        self._write(todo, had)
        gone = [had[source].id for source in had.keys() - {f.source for f in found if f.reason is None}]
        self.store.remove(self.index_id, gone)
        self.vectors.catch_up(self.index_id)
        self._told()
        rows = [self._skipped[source] for source in sorted(self._skipped)]
        self.store.set_skipped(self.index_id, rows)
        skipped = tuple(Skipped(row["source"], row["reason"]) for row in rows)
        self.report = replace(
            self.report, deleted=self.report.deleted + len(gone), seconds=time.monotonic() - self._began, skipped=skipped
        )
        documents, chunks = self.store.counts(self.index_id)
        self.report = replace(self.report, chunks=chunks)
        self.store.finish(self.index_id, self.report, self.encoder.fingerprint)
        if not documents:
            raise SourceError(_nothing(root, skipped))
        return self.report

    def _changed(self, found: Sequence[Found], had: dict[str, Stored]) -> Iterator[Found]:
        """Files to read: not those whose size, time and versions are as last time, nor those that failed so."""
        failed = {row.source: row for row in self.store.skipped(self.index_id) if row.versions is not None}
        for file in found:
            if file.reason is not None:
                self._skip(file, Skip(file.reason))
                continue
            old, bad = had.get(file.source), failed.get(file.source)
            if old and (old.size, old.mtime_ns, old.versions) == (file.size, file.mtime_ns, self.versions):
                self._keep(file, old)
            elif not old and bad and (bad.size, bad.mtime_ns, bad.versions) == (file.size, file.mtime_ns, self.versions):
                self._skip(file, Skip(bad.reason, final=True))
            else:
                yield file

    def _keep(self, file: Found, old: Stored) -> None:
        self._count(unchanged=1)
        if old.note:
            self._skip(file, Skip(old.note))

    def _skip(self, file: Found, skip: Skip) -> None:
        row = {"source": file.source, "reason": skip.reason, "size": None, "mtime_ns": None, "versions": None}
        if skip.final:
            row |= {"size": file.size, "mtime_ns": file.mtime_ns, "versions": self.versions}
        with self._lock:
            self._skipped[file.source] = row

    def _write(self, todo: Sequence[Found], had: dict[str, Stored]) -> None:
        """The pipeline: readers -> groups of chunks -> encoder -> one writer."""
        with (
            ThreadPoolExecutor(READERS, thread_name_prefix="smalti-read") as readers,
            ThreadPoolExecutor(2, thread_name_prefix="smalti-group") as groups,
            ThreadPoolExecutor(1, thread_name_prefix="smalti-write") as writer,
        ):
            written: deque[Future[None]] = deque()

            def flush(group: list[Prepared]) -> None:
                vectors = groups.submit(self._vectors, list(group))
                written.append(writer.submit(self._store_group, list(group), vectors, set(had)))
                group.clear()
                # Two groups with the encoder, one being written: what is read ahead stays bounded.
                while len(written) > 3:
                    written.popleft().result()

            group: list[Prepared] = []
            try:
                for read in _ahead(readers, lambda file: self._read(file, had.get(file.source)), todo, READERS * 3):
                    if read.skip is not None:
                        self._skip(read.found, read.skip)
                        old = had.get(read.found.source)
                        if old is not None and not read.skip.keep:
                            self.store.remove(self.index_id, [old.id])
                            self._count(deleted=1)
                        self._file_done()
                    elif read.prepared is None:
                        self._keep(read.found, had[read.found.source])
                        self._file_done()
                    else:
                        group.append(read.prepared)
                        if sum(len(p.chunks) for p in group) >= GROUP:
                            flush(group)
                if group:
                    flush(group)
                while written:
                    written.popleft().result()
            except BaseException:
                for pool in (readers, groups, writer):
                    pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _read(self, file: Found, old: Stored | None) -> _Read:
        try:
            loaded = loading.load(file, self.workers, old.sha256 if old and old.versions == self.versions else None)
        except Skip as skip:
            return _Read(file, skip=skip)
        if loaded is None:
            assert old is not None
            self.store.touch(old.id, file.size, file.mtime_ns)
            return _Read(file)
        try:
            return _Read(file, self._prepare(loaded))
        except Exception as error:  # one document must not end the sync of all others
            log.exception("%s could not be cut into passages", file.path)
            return _Read(file, skip=Skip(f"could not be cut into passages ({type(error).__name__})", final=True))

    def _prepare(self, loaded: Loaded) -> Prepared:
        chunks = chunking.chunk(
            loaded.text,
            self.encoder.token_starts,
            media_type=loaded.media_type,
            pages=loaded.pages,
            headings=loaded.headings,
            parts=loaded.parts,
            plan=self.plan,
        )
        document_id = digest(self.index, loaded.source)
        ids, contexts, contents = [], [], []
        met: dict[str, int] = {}
        for c in chunks:
            around = chunking.context(loaded.title, c.heading)
            content = digest(self.encoder.fingerprint, chunking.embedded_text(around, c.text, self.encoder.token_starts))
            # The same text under the same heading twice in a document: told apart by which of them it is.
            met[content] = met.get(content, 0) + 1
            ids.append(digest(document_id, content, str(met[content])))
            contexts.append(around)
            contents.append(content)
        spoken = words.language(loaded.text)
        held = [words.encode(c.text, around, spoken) for c, around in zip(chunks, contexts, strict=True)]
        document = Document(document_id, self.index, loaded.source, loaded.title, loaded.text, loaded.media_type, loaded.sha256)
        return Prepared(document, loaded.size, loaded.mtime_ns, self.versions, loaded.note, chunks, ids, contexts, contents, held)

    def _vectors(self, group: Sequence[Prepared]) -> tuple[dict[str, Embedded], int]:
        """Vectors and word pieces by content hash, and how many of them had to be computed."""
        texts = {
            content: chunking.embedded_text(around, c.text, self.encoder.token_starts)
            for p in group
            for content, around, c in zip(p.contents, p.contexts, p.chunks, strict=True)
        }
        known = self.store.known(texts)
        new = [content for content in texts if content not in known]
        fresh = zip(*self.encoder.embed_pieces([texts[content] for content in new]), strict=True)
        known.update((content, (row.astype(np.float32).tobytes(), held)) for content, (row, held) in zip(new, fresh, strict=True))
        return known, len(new)

    def _store_group(self, group: Sequence[Prepared], vectors: Future[tuple[dict[str, Embedded], int]], had: set[str]) -> None:
        known, embedded = vectors.result()
        self._count(embedded=embedded)
        for p in group:
            self.store.write(self.index_id, p, [known[content] for content in p.contents])
            changed = p.document.source in had
            self._count(added=not changed, changed=changed)
            if p.note:
                self._skip(Found(p.document.source, Path()), Skip(p.note))
            self._file_done(len(p.chunks))
        self.vectors.catch_up(self.index_id)
        self._told()

    def _count(self, **more: int) -> None:
        with self._lock:
            self.report = replace(self.report, **{name: getattr(self.report, name) + n for name, n in more.items()})

    def _file_done(self, chunks: int = 0) -> None:
        with self._lock:
            self._done += 1
            self._chunks += chunks
            self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            seconds = time.monotonic() - self._began
            self._progress(Progress(self.index, self._done, self._total, self._chunks, self.report.embedded, seconds))


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Found], _Read], files: Sequence[Found], depth: int) -> Iterator[_Read]:
    """Results in order, at most `depth` files ahead of the one taken."""
    waiting: deque[Future[_Read]] = deque()
    for file in files:
        waiting.append(pool.submit(work, file))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _nothing(root: Path, skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return f"{root} holds no documents: put md, rst, txt, html, pdf, docx or other documents there, or name another folder"
    shown = "; ".join(f"{s.source}: {s.reason}" for s in skipped[:3]) + ("; …" if len(skipped) > 3 else "")
    return (
        f"nothing in {root} could be indexed ({shown}): it needs documents that can be read, as md, txt, html, pdf or docx files"
    )
