"""Mail to text: RFC 5322, Outlook's `.msg`, pages saved as MHTML. Run where `retrieval.convert` runs.

What is attached to a mail is handed back as it is: each file is converted by itself (`retrieval.attached`).
"""

from __future__ import annotations

import base64
import email
import io
import struct
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email import policy
from email.utils import format_datetime
from typing import Any

from retrieval.convert import Converted, Unreadable, decoded, html

NESTED = 5
"""Mails within mails that are read."""


def mail(data: bytes) -> Converted:
    message: Any = email.message_from_bytes(data, policy=policy.default)
    if not message.keys():
        raise Unreadable("broken mail (it has no headers)")
    part = message.get_body(preferencelist=("plain", "html"))
    attached = list(filter(None, map(_attachment, message.iter_attachments()))) if message.is_multipart() else []
    head = {name: str(message[name] or "") for name in ("From", "To", "Cc", "Date")}
    return _letter(str(message.get("subject") or ""), head, "" if part is None else _written(part), attached)


def _letter(subject: str, head: dict[str, str], body: str, attached: list[tuple[str, str, str]]) -> Converted:
    subject = " ".join(subject.split())
    lines = [f"{name}: {' '.join(value.split())}" for name, value in head.items() if value.strip()]
    if attached:
        body += "\n\nAttachments: " + ", ".join(name for name, _, _ in attached)
    if not body.strip() and not subject:
        raise Unreadable("mail has no text")
    text = f"# {subject or 'Mail'}\n\n" + "\n".join(lines) + "\n\n" + body.replace("\r\n", "\n").strip() + "\n"
    return Converted(text, subject, attached=attached)


def _attachment(part: Any) -> tuple[str, str, str] | None:
    """A file's name, media type and bytes in base64; None for text that is empty, as programs leave it between pictures."""
    kind, name = part.get_content_type(), part.get_filename()
    if kind == "message/rfc822" and isinstance(part.get_payload(), list):
        inner = part.get_payload(0)
        name = name or str(inner.get("subject") or "")
        data = inner.as_bytes()
    elif kind in ("text/plain", "text/html"):  # whose bytes are in an encoding that the part names
        if not _written(part).strip():
            return None
        data = _text(part).encode("utf-8", "replace")
    else:
        data = part.get_payload(decode=True) or b""
    return " ".join((name or "attachment").split()), kind, base64.b64encode(data).decode()


def _text(part: Any) -> str:
    try:
        return part.get_content()
    except (LookupError, ValueError):
        return decoded(part.get_payload(decode=True) or b"")


def _written(part: Any) -> str:
    """The text of a part that is text."""
    body = _text(part)
    if part.get_content_type() != "text/html":
        return body
    try:
        return html(body.encode("utf-8", "replace")).text
    except Unreadable:  # as of a mail that is a picture
        return ""


def outlook(data: bytes) -> Converted:
    """A mail as Outlook saves it: [MS-OXMSG], https://learn.microsoft.com/openspecs/exchange_server_protocols/ms-oxmsg."""
    import olefile

    if not olefile.isOleFile(io.BytesIO(data)):  # short bytes it takes for a path
        raise Unreadable("broken Outlook mail (it does not begin as one)")
    try:
        with olefile.OleFileIO(io.BytesIO(data)) as held:
            if ["__properties_version1.0"] not in held.listdir():
                raise Unreadable("broken Outlook mail (it holds none)")
            return _outlook(held, [])
    except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
        raise Unreadable("broken Outlook mail") from error


# Numbers of properties, [MS-OXPROPS].
SUBJECT, BODY, BODY_HTML, TO, CC = 0x0037, 0x1000, 0x1013, 0x0E04, 0x0E03
SENDER, SENDER_ADDRESS, SENDER_SMTP = 0x0C1A, 0x0C1F, 0x5D01
ATTACHED, LONG_NAME, SHORT_NAME, MIME = 0x3701, 0x3707, 0x3704, 0x370E
SENT, RECEIVED = 0x0039, 0x0E06


def _outlook(held: Any, place: list[str]) -> Converted:
    """The mail in a folder of the file, and those attached to it down to `NESTED`."""
    address = _property(held, place, SENDER_SMTP) or _property(held, place, SENDER_ADDRESS)
    name = _property(held, place, SENDER)
    sender = f"{name} <{address}>" if "@" in address and name and name != address else name or address
    head = {"From": sender, "To": _property(held, place, TO), "Cc": _property(held, place, CC), "Date": _sent(held, place)}
    body = _property(held, place, BODY)
    if not body.strip() and (page := _bytes(held, [*place, f"__substg1.0_{BODY_HTML:04X}0102"])):
        with suppress(Unreadable):  # as of a mail that is a picture
            body = html(page).text
    attached: list[tuple[str, str, str]] = []
    folders = {
        entry[len(place)] for entry in held.listdir(storages=True) if len(entry) > len(place) and entry[: len(place)] == place
    }
    for folder in sorted(each for each in folders if each.startswith("__attach_version1.0_")):
        here = [*place, folder]
        name = _property(held, here, LONG_NAME) or _property(held, here, SHORT_NAME)
        inner = [*here, f"__substg1.0_{ATTACHED:04X}000D"]
        if held.exists([*inner, "__properties_version1.0"]):
            if len(place) < 2 * NESTED:  # two folders a mail
                letter = _outlook(held, inner)
                name = name or letter.title or "attachment"
                attached.append((name, "text/markdown", base64.b64encode(letter.text.encode()).decode()))
                attached += [(f"{name} > {file}", kind, data) for file, kind, data in letter.attached]
            continue
        data = _bytes(held, [*here, f"__substg1.0_{ATTACHED:04X}0102"])
        attached.append(
            (" ".join((name or "attachment").split()), _property(held, here, MIME).lower(), base64.b64encode(data).decode())
        )
    return _letter(_property(held, place, SUBJECT), head, body, attached)


def _property(held: Any, place: list[str], number: int) -> str:
    """A property that is text, in 16-bit characters or in some encoding of 8; "" where there is none."""
    wide = _bytes(held, [*place, f"__substg1.0_{number:04X}001F"])
    if wide:
        return wide.decode("utf-16-le", "replace").rstrip("\x00")
    return decoded(_bytes(held, [*place, f"__substg1.0_{number:04X}001E"])).rstrip("\x00\ufffd")


def _bytes(held: Any, path: list[str]) -> bytes:
    return held.openstream(path).read() if held.exists(path) else b""


def _sent(held: Any, place: list[str]) -> str:
    """When it was sent, else received; "" where it does not say. Times are counted from 1601 in tenths of microseconds."""
    fixed = _bytes(held, [*place, "__properties_version1.0"])
    found: dict[int, int] = {}
    for at in range(len(fixed) % 16, len(fixed) - 15, 16):  # a head of 32, 24 or 8 bytes, then entries
        tag, _, value = struct.unpack_from("<IIQ", fixed, at)
        if tag & 0xFFFF == 0x0040:
            found[tag >> 16] = value
    ticks = found.get(SENT) or found.get(RECEIVED)
    try:
        return format_datetime(datetime(1601, 1, 1, tzinfo=UTC) + timedelta(microseconds=ticks // 10)) if ticks else ""
    except OverflowError:
        return ""


def archived(data: bytes) -> Converted:
    """A page saved with all it shows (MHTML, RFC 2557): its root document; frames and pictures are left out."""
    message: Any = email.message_from_bytes(data, policy=policy.default)
    parts = [part for part in message.walk() if part.get_content_type() in ("text/html", "application/xhtml+xml")]
    if not parts:
        raise Unreadable("saved page holds no HTML")
    start = message.get_param("start")
    root = next((part for part in parts if start and part.get("content-id") == start), parts[0])
    body = root.get_payload(decode=True) or b""
    try:
        charset = root.get_content_charset()
        body = body.decode(charset, "replace").encode() if charset else body
    except (LookupError, ValueError):
        pass  # an encoding nobody knows: the page itself may tell
    return html(body)


CONVERTERS: dict[str, Callable[[bytes], Converted]] = {"mail": mail, "outlook": outlook, "archived": archived}
