"""The loop of the worker process (`retrieval.worker`): there a hostile file is converted under limits, and may be ended."""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
import warnings
from dataclasses import asdict
from typing import BinaryIO

from retrieval import convert, convert_mail, convert_more, convert_open
from retrieval.convert import MAX_TEXT, Unreadable, clean

CONVERTERS = convert.CONVERTERS | convert_more.CONVERTERS | convert_mail.CONVERTERS | convert_open.CONVERTERS


def main(memory: int, seconds: int) -> None:
    """Serves requests on stdin until it closes: a frame is a length (4 bytes, big-endian) and that many bytes.

    A request is two frames, the converter's name and the file; the answer one frame of JSON.
    """
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a converter prints must not end up in an answer
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    source: BinaryIO = sys.stdin.buffer
    while (name := _frame(source)) is not None and (data := _frame(source)) is not None:
        # Should the parent die while a parser loops, the kernel ends this process.
        used = resource.getrusage(resource.RUSAGE_SELF)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + seconds + 5, resource.RLIM_INFINITY))
        try:
            result = CONVERTERS[name.decode()](data)
            if len(result.text) > MAX_TEXT:
                raise Unreadable(f"holds more than {MAX_TEXT:,} characters")
            result.text = clean(result.text) if result.pages == [] and not result.headings else result.text
            answer = asdict(result)
        except Unreadable as error:
            answer = {"error": str(error)}
        except MemoryError:
            answer = {"error": f"needs more than {memory // 1_000_000} MB to convert"}
        except RecursionError:
            answer = {"error": "is nested too deeply to convert"}
        except Exception as error:
            answer = {"error": f"converter failed ({type(error).__name__})"}
        body = json.dumps(answer).encode()
        out.write(struct.pack(">I", len(body)) + body)
        out.flush()


def _frame(source: BinaryIO) -> bytes | None:
    head = source.read(4)
    if len(head) < 4:
        return None
    return source.read(struct.unpack(">I", head)[0])
