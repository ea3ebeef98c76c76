"""Frames of the journal: JSON that always succeeds, without secrets, and found again in a damaged file.

Frame: 4 bytes magic, then length and CRC-32 of the body (32 bits each, little-endian), then the body: a JSON object of
columns of the inference table.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

MAGIC = b"\xf5SM1"  # 0xF5 occurs in no UTF-8 text, so not in a body
_HEADER = struct.Struct("<4sII")
_LARGEST = 1 << 31  # an INTEGER of PostgreSQL and of Parquet ends there
_OURS = re.compile(rb"sm[ko]_")
_KEY = re.compile(rb"sm[ko]_[A-Za-z0-9_-]{20,}")


def encode(columns: Mapping[str, Any], secrets: Sequence[str] = ()) -> bytes:
    """A frame, header and body, without secrets."""
    body = dumps(columns)
    ours = _OURS.search(body) is not None  # in a third of the time that `in` takes
    for secret in secrets:
        if (ours or not secret.startswith("smk_")) and dumps(secret)[1:-1] in body:
            body = dumps({name: _without(value, secret) for name, value in orjson.loads(body).items()})
    if ours:
        body = _KEY.sub(b"[redacted]", body)
    return _HEADER.pack(MAGIC, len(body), zlib.crc32(body)) + body


def _without(value: Any, secret: str) -> Any:
    if isinstance(value, str):
        return value.replace(secret, "[redacted]")
    if isinstance(value, list):
        return [_without(item, secret) for item in value]
    if isinstance(value, dict):
        return {name.replace(secret, "[redacted]"): _without(item, secret) for name, item in value.items()}
    return value


def scan(data: bytes, final: bool) -> tuple[list[bytes], int, int]:
    """Bodies of the whole frames in a stretch of a segment, the bytes used up, and how many damaged stretches were passed over.

    Unless `final`, what follows the last whole frame is left for later: it may be a frame that is being written.
    """
    bodies, position, skipped = [], 0, 0
    while position < len(data):
        end = _frame_end(data, position)
        if end is not None:
            bodies.append(data[position + _HEADER.size : end])
            position = end
            continue
        following = data.find(MAGIC, position + 1)
        while following >= 0 and _frame_end(data, following) is None:
            following = data.find(MAGIC, following + 1)
        if following < 0:
            if not final:
                break
            following = len(data)
        skipped += 1
        position = following
    return bodies, position, skipped


def _frame_end(data: bytes, start: int) -> int | None:
    if len(data) - start < _HEADER.size:
        return None
    magic, length, crc = _HEADER.unpack_from(data, start)
    begin = start + _HEADER.size
    end = begin + length
    if magic != MAGIC or end > len(data) or zlib.crc32(memoryview(data)[begin:end]) != crc:
        return None
    return end


def iso(time: datetime | int) -> str:
    """UTC, with microseconds, of a datetime or of Unix nanoseconds."""
    if isinstance(time, datetime):
        return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    second, rest = divmod(time, 1_000_000_000)
    return f"{_second(second)}.{rest // 1_000:06d}Z"


@lru_cache(64)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def moment(value: datetime | str) -> datetime:
    """A time as it was given, or written in ISO 8601; UTC where it names no zone. Raises `ValueError`."""
    if isinstance(value, str):
        short = {4: f"{value}-01-01", 7: f"{value}-01"}  # a year, a month
        try:
            value = datetime.fromisoformat(short.get(len(value), value))
        except ValueError:
            raise ValueError(f"{value!r} is no time: write it as 2026-11-22 or 2026-11-22T10:00:00Z") from None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def storable(value: Any) -> Any:
    """Without what no database takes and what would be in the way of all that follows: NUL, and None for too large an integer."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd") if "\x00" in value else value
    return None if isinstance(value, int) and not -_LARGEST <= value < _LARGEST else value


def dumps(value: Any) -> bytes:
    """JSON of anything; what JSON cannot say is said in words, so that a strange payload never stops a record."""
    try:
        return orjson.dumps(value, default=_plain)
    except (TypeError, ValueError, RecursionError):
        pass  # keys that are no texts are rare, and looking for them slows every other
    try:
        return orjson.dumps(value, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError, RecursionError):
        return orjson.dumps(_safe(value, 0), option=orjson.OPT_NON_STR_KEYS)


def payload(value: Any, limit: int) -> bytes:
    """JSON of a request or an answer; one longer than `limit` bytes becomes a marker with its length and beginning."""
    raw = dumps(value)
    if len(raw) <= limit:
        return raw
    return orjson.dumps({"smalti_truncated": True, "bytes": len(raw), "head": raw[: limit // 4].decode("utf-8", "ignore")})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, set | frozenset | Sequence):
        return list(value)
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return dump()
    return f"<{type(value).__name__}>"


def _safe(value: Any, depth: int) -> Any:
    if isinstance(value, orjson.Fragment):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**64 else str(value)
    if depth > 100:
        return "<nested too deeply>"
    if isinstance(value, Mapping):
        return {_safe(str(name), depth): _safe(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_safe(item, depth + 1) for item in value]
    return f"<{type(value).__name__}>"
