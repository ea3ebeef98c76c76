"""The encoder: text to unit vectors by all-MiniLM-L6-v2, through ONNX Runtime and tokenizers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval import bert_onnx, weights, words
from retrieval.late import Asked, packed

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

MAX_TOKENS = 256
BATCH_TOKENS = 2048
"""Tokens of one run: small enough that a batch's states stay in the processor's cache, and several runs share the cores."""
SMALLEST_SHARE = 48
"""Tokens under which handing work to another core costs more than it saves."""
CACHED = 8192
"""Vectors `aembed` remembers, about 12 MB."""
ASKED = 512
"""Questions `aask` remembers, about 12 MB."""

Answer = np.ndarray | Asked
Read = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Of a text's n word pieces: numbers (n), first and last character (n x 2), vectors before and after all layers (n x 384)."""
Pending = tuple[list[str], bool, asyncio.AbstractEventLoop, "asyncio.Future[Any]"]
"""Texts, whether they are one question whose pieces are wanted, and who waits."""


class Encoder:
    """all-MiniLM-L6-v2 (384 dimensions, 256 tokens, mean pooling, unit length). Thread-safe.

    Made by `Encoder.load`. `fingerprint` changes whenever the same text could get another vector.
    """

    name = "all-MiniLM-L6-v2"
    dimension = bert_onnx.HIDDEN

    def __init__(
        self, open_both: Callable[[], tuple[InferenceSession, Tokenizer]], fingerprint: str, threads: int, folder: Path
    ) -> None:
        self.fingerprint, self.threads, self._folder = fingerprint, threads, folder
        self._open = open_both
        # Texts run one to a core instead of one across cores: no synchronisation within a run, and a query never waits for it.
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="smalti-encoder") if threads > 1 else None
        self._queue: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._asked: OrderedDict[str, Asked] = OrderedDict()
        self._silent: np.ndarray | None = None

    @cached_property
    def _opened(self) -> tuple[InferenceSession, Tokenizer]:
        return self._open()

    @property
    def _session(self) -> InferenceSession:
        return self._opened[0]

    @property
    def _plain(self) -> Tokenizer:
        return self._opened[1]

    @classmethod
    def load(
        cls, cache: Path, *, threads: int | None = None, variant: bert_onnx.Variant = "int8", later: bool = False
    ) -> Encoder:
        """Opens the encoder, building its ONNX file in `cache` the first time.

        Parameters
        ----------
        cache: folder for the built model; made when missing.
        threads: texts encoded at once; None means one for each core this process may use.
        variant: `int8` (twice as fast, no loss measured in retrieval) or `fp32`.
        later: whether it is opened, and takes its 100 MB of memory, only when it is first used.

        Raises
        ------
        EncoderError: the weights are missing or are not the published ones.
        """
        cache = Path(cache)
        folder = weights.find(cache)
        fingerprint = f"{cls.name}:{variant}:{bert_onnx.GRAPH_VERSION}:{weights.SHA256[:12]}"
        path = cache / f"{fingerprint.replace(':', '-')}-{bert_onnx.OUTPUTS}.onnx"

        def write() -> None:
            cache.mkdir(parents=True, exist_ok=True)
            model = bert_onnx.build(bert_onnx.read_weights(folder / "model.safetensors"), variant)
            weights.write_atomically(path, model.SerializeToString())

        def open_both() -> tuple[InferenceSession, Tokenizer]:
            import onnxruntime
            from tokenizers import Tokenizer

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.log_severity_level = 3

            def session() -> InferenceSession:
                return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

            if not path.is_file():
                write()
            try:
                opened = session()
            except Exception:  # a damaged file in the cache is rebuilt once; a second failure is real
                write()
                opened = session()
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            return opened, tokenizer

        encoder = cls(open_both, fingerprint, threads or usable_cores(), folder)
        if not later:
            _ = encoder._opened
        return encoder

    def count_tokens(self, text: str) -> int:
        """Word pieces of `text`, without the two the model adds."""
        return len(self._plain.encode(text, add_special_tokens=False).ids)

    def token_starts(self, text: str) -> np.ndarray:
        """Character offset at which each word piece of `text` begins, ascending."""
        starts: list[int] = []
        at = 0
        # In windows cut after a line, so that a large document's offsets never exist as Python objects all at once.
        while at < len(text):
            end = len(text) if len(text) - at <= 65536 else (text.rfind("\n", at, at + 65536) + 1 or at + 65536)
            encoded = self._plain.encode(text[at:end], add_special_tokens=False)
            starts.extend(at + a for a, _ in encoded.offsets)
            at = end
        return np.asarray(starts, dtype=np.int64)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of `texts`, (n, 384) float32 of unit length. Blocking. Text past 256 tokens is not seen."""
        return self._encoded([_clip(e.ids) for e in self._plain.encode_batch_fast([_bounded(t) for t in texts])])

    def embed_pieces(self, texts: Sequence[str]) -> tuple[np.ndarray, list[bytes]]:
        """The vectors of `texts`, and of each the word pieces that `retrieval.late` compares. Blocking."""
        ids = [_clip(e.ids) for e in self._plain.encode_batch_fast([_bounded(t) for t in texts])]
        found = [b""] * len(ids)
        silent = self._without_meaning()

        def keep(i: int, states: np.ndarray) -> None:
            kept = ~silent[ids[i]]
            if not kept.any():
                kept[1:-1] = True
            found[i] = packed(states[kept])

        return self._encoded(ids, keep), found

    def ask(self, text: str) -> Asked:
        """A question's vector and word pieces. Blocking."""
        return self._ask([text])[0]

    def _ask(self, texts: Sequence[str]) -> list[Asked]:
        encodings = self._plain.encode_batch([_bounded(text) for text in texts])
        states: list[np.ndarray] = [np.empty((0, self.dimension), np.float32)] * len(texts)

        def keep(i: int, found: np.ndarray) -> None:
            inner = found[1:-1]
            states[i] = inner / np.maximum(np.linalg.norm(inner, axis=1, keepdims=True), 1e-9)

        vectors = self._encoded([_clip(e.ids) for e in encodings], keep)
        spans = [tuple(e.offsets[1 : len(of) + 1]) for e, of in zip(encodings, states, strict=True)]
        return [Asked(*each) for each in zip(vectors, states, spans, strict=True)]

    def read(self, texts: Sequence[str]) -> tuple[np.ndarray, list[Read]]:
        """The vectors of `texts`, and their word pieces one by one: what each is, where it stands, and what it means there.
        Blocking."""
        encodings = self._plain.encode_batch([_bounded(text) for text in texts])
        ids = [_clip(e.ids) for e in encodings]
        found: list[Any] = [None] * len(ids)

        def keep(i: int, states: np.ndarray) -> None:
            inner = np.asarray(ids[i][1:-1], np.int64)
            spans = np.asarray(encodings[i].offsets[1 : len(inner) + 1], np.int64).reshape(-1, 2)
            found[i] = inner, spans, np.asarray(self._words[inner], np.float32), states[1:-1].copy()

        return self._encoded(ids, keep), found

    @cached_property
    def _words(self) -> np.ndarray:
        return weights.word_vectors(self._folder)

    def _without_meaning(self) -> np.ndarray:
        """Which word pieces say nothing: words as "the", and what has no letter or digit."""
        if self._silent is None:
            vocabulary = self._plain.get_vocab()
            silent = np.zeros(max(vocabulary.values()) + 1, bool)
            silent[[n for word, n in vocabulary.items() if word in words.STOPWORDS or not any(map(str.isalnum, word))]] = True
            silent[[vocabulary["[CLS]"], vocabulary["[SEP]"]]] = True
            self._silent = silent
        return self._silent

    def _encoded(self, ids: list[list[int]], keep: Callable[[int, np.ndarray], None] | None = None) -> np.ndarray:
        """Vectors of texts given as tokens; `keep` is handed each one's states."""
        if not ids:
            return np.empty((0, self.dimension), np.float32)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
        lengths = [len(i) for i in ids]
        share = -(-sum(lengths) // self.threads)  # a handful of sentences is worth every core too
        batches = _batches(order, lengths, min(BATCH_TOKENS, max(SMALLEST_SHARE, share)))
        out = np.empty((len(ids), self.dimension), np.float32)

        def run(batch: list[int]) -> None:
            found = self._run([ids[i] for i in batch], keep is not None)
            out[batch] = found[0]
            if keep is not None:
                for i, states in zip(batch, found[1], strict=True):
                    keep(i, states[: lengths[i]])

        if self._pool is None or len(batches) == 1:
            for batch in batches:
                run(batch)
        else:
            list(self._pool.map(run, batches))
        return out

    def _run(self, rows: list[list[int]], states: bool = False) -> Any:
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        width = int(lengths.max())
        mask = (np.arange(width, dtype=np.int32) < lengths[:, None]).astype(np.int32)
        ids = np.zeros((len(rows), width), np.int32)
        ids[mask.astype(bool)] = np.concatenate([np.asarray(row, np.int32) for row in rows])
        return self._session.run(["embedding", "states"][: 1 + states], {"ids": ids, "mask": mask, "lengths": lengths})

    async def aembed(self, texts: Sequence[str]) -> np.ndarray:
        """`embed` off the event loop; callers that wait together are encoded together, and known texts come from a cache."""
        keys = [hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=16).digest() for t in texts]
        rows: list[np.ndarray | None] = []
        with self._lock:
            for key in keys:
                row = self._cache.get(key)
                if row is not None:
                    self._cache.move_to_end(key)
                rows.append(row)
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[np.ndarray] = loop.create_future()
            self._start()
            self._queue.put(([texts[i] for i in missing], False, loop, future))
            fresh = await future
            with self._lock:
                for i, row in zip(missing, fresh, strict=True):
                    rows[i] = self._cache[keys[i]] = row
                while len(self._cache) > CACHED:
                    self._cache.popitem(last=False)
        return np.array(rows, np.float32).reshape(len(texts), self.dimension)

    async def aask(self, text: str) -> Asked:
        """`ask` off the event loop; callers that wait together are encoded together, and known questions come from a cache."""
        with self._lock:
            known = self._asked.get(text)
        if known is None:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[Asked] = loop.create_future()
            self._start()
            self._queue.put(([text], True, loop, future))
            known = await future
            with self._lock:
                self._asked[text] = known
                while len(self._asked) > ASKED:
                    self._asked.popitem(last=False)
        return known

    def close(self) -> None:
        """Ends the worker threads. The encoder may not be used afterwards."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            self._queue.put(None)
            worker.join()
        if self._pool is not None:
            self._pool.shutdown()

    def _start(self) -> None:
        with self._lock:
            if self._worker is None:
                self._worker = threading.Thread(target=self._serve, name="smalti-embed", daemon=True)
                self._worker.start()

    def _serve(self) -> None:
        while (first := self._queue.get()) is not None:
            taken, last = [first], False
            while not self._queue.empty() and sum(len(t) for t, *_ in taken) < 256:
                item = self._queue.get()
                if item is None:
                    last = True
                    break
                taken.append(item)
            taken = [item for item in taken if not item[3].cancelled()]
            for question in (False, True):
                self._answer([item for item in taken if item[1] is question], question)
            if last:
                return

    def _answer(self, taken: list[Pending], question: bool) -> None:
        try:
            texts = [text for item in taken for text in item[0]]
            found: Any = self._ask(texts) if question else self.embed(texts)
        except Exception as error:
            for _, _, loop, future in taken:
                _settle(loop, future, error=error)
            return
        at = 0
        for mine, _, loop, future in taken:
            _settle(loop, future, found[at] if question else found[at : at + len(mine)])
            at += len(mine)


def _settle(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], value: Answer | None = None, error: Exception | None = None
) -> None:
    def settle() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif value is not None:
            future.set_result(value)

    with contextlib.suppress(RuntimeError):  # the caller's loop has ended: nobody waits
        loop.call_soon_threadsafe(settle)


def _batches(order: list[int], lengths: list[int], most: int) -> list[list[int]]:
    """Splits texts, longest first, into runs of at most `most` tokens with padding."""
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= most:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _bounded(text: str) -> str:
    """No text needs more than this to fill 256 tokens, short of one absurd word."""
    text = text[: MAX_TOKENS * 64]
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _clip(ids: list[int]) -> list[int]:
    return ids if len(ids) <= MAX_TOKENS else [*ids[: MAX_TOKENS - 1], ids[-1]]


def usable_cores() -> int:
    """Cores this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
