"""Converters in processes of their own, kept warm, that are ended when a file takes too long or too much memory."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from retrieval.convert import Converted, Unreadable

SECONDS = 60
MEMORY = 2_000_000_000


class _Process:
    """One worker: a Python that runs `retrieval.convert.main`."""

    def __init__(self, memory: int, seconds: float) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        code = f"import sys; sys.path.insert(0, {root!r}); from retrieval.convert import main; main({memory}, {int(seconds) + 1})"
        # One thread for numeric libraries: their thread stacks alone can exceed the memory limit.
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self._child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
        )

    def convert(self, kind: str, data: bytes, seconds: float) -> Converted:
        """Raises Unreadable; after TimeoutError or OSError the process is of no more use."""
        timer = threading.Timer(seconds, self._child.kill)
        began = time.monotonic()
        timer.start()
        try:
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            for part in (kind.encode(), data):
                self._child.stdin.write(struct.pack(">I", len(part)) + part)
            self._child.stdin.flush()
            head = self._child.stdout.read(4)
            body = self._child.stdout.read(struct.unpack(">I", head)[0]) if len(head) == 4 else b""
        finally:
            timer.cancel()
        if not body:
            if time.monotonic() - began >= seconds:
                raise TimeoutError
            raise OSError("the worker ended")
        answer = json.loads(body)
        if "error" in answer:
            raise Unreadable(answer["error"])
        for name in ("headings", "attached"):
            answer[name] = [(a, b, c) for a, b, c in answer[name]]
        return Converted(**answer)

    def end(self) -> None:
        self._child.kill()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # the pipe broke with the child
                    pipe.close()
        self._child.wait()


class Workers:
    """A few worker processes, started when first needed. Thread-safe.

    Parameters
    ----------
    size: files converted at once.
    seconds: time one file may take.
    memory: address space of one worker, bytes.
    """

    def __init__(self, size: int = 2, *, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self.seconds, self._memory = seconds, memory
        self._slots: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        for _ in range(size):
            self._slots.put(None)

    def convert(self, kind: str, data: bytes, seconds: float | None = None) -> Converted:
        """The text of a file; `seconds` is what it may take where that is less than any file may.

        Raises
        ------
        Unreadable: the file cannot be converted, or its converter was ended.
        """
        limit = self.seconds if seconds is None else min(seconds, self.seconds)
        process = self._slots.get()
        try:
            process = process or _Process(self._memory, self.seconds)
            return process.convert(kind, data, limit)
        except Unreadable:
            raise
        except BaseException as error:
            if process is not None:
                process.end()
            process = None
            if isinstance(error, TimeoutError):
                raise Unreadable(f"took more than {limit:.3g} s to convert") from error
            if isinstance(error, OSError):
                raise Unreadable("its converter crashed or ran out of memory") from error
            raise
        finally:
            self._slots.put(process)

    def close(self) -> None:
        """Ends the idle workers; a later `convert` starts new ones."""
        idle: list[_Process | None] = []
        while True:
            try:
                idle.append(self._slots.get_nowait())
            except queue.Empty:
                break
        for process in idle:
            if process is not None:
                process.end()
            self._slots.put(None)
