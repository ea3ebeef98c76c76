"""What is attached to a mail: each file converted by itself, under the limits of any other, its text behind the mail's."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from pathlib import PurePath

from retrieval.convert import MAX_TEXT, Converted, Part, Unreadable
from retrieval.convert_mail import NESTED

MOST = 100
"""Files attached to a mail that are read, those of mails within it included."""
TOLD = 5
"""Files whose faults are told."""

Convert = Callable[[str, bytes, float], Converted]
"""`convert(media, data, seconds)`. Raises Unreadable."""
Media = Callable[[str, str], str | None]
"""`media(name, kind)`: the media type of a file, by its name and by what the mail says of it; None for one that has no text.

Raises Unreadable: there is no converter for it."""


def joined(mail: Converted, media: Media, convert: Convert, seconds: float) -> Converted:
    """The mail with the text of its attachments, in their order, those of attached mails behind them.

    What cannot be read is named in its note, and the rest stays. `seconds` is what all of them may take.
    """
    until = time.monotonic() + seconds
    texts, at, parts, faults = [mail.text], len(mail.text), list[Part](), list[str]()
    waiting = [((name,), kind, data) for name, kind, data in reversed(mail.attached)]
    taken = 0
    while waiting:
        path, kind, encoded = waiting.pop()
        try:
            found = media(path[-1], kind)
            if found is None:
                continue
            taken += 1
            left = until - time.monotonic()
            if taken > MOST or len(path) > NESTED or left <= 0:
                limit = (
                    f"{MOST} attachments" if taken > MOST else f"mails in mails {NESTED} deep" if left > 0 else f"{seconds:g} s"
                )
                raise Unreadable(f"is not read: the limit is {limit}")
            made = convert(found, base64.b64decode(encoded), left)
            if at + len(made.text) > MAX_TEXT:
                raise Unreadable(f"holds more than {MAX_TEXT:,} characters with the rest")
        except Unreadable as error:
            faults.append(f"{' > '.join(path)}: {error}")
            continue
        if made.note:
            faults.append(f"{' > '.join(path)}: {made.note}")
        if made.text.strip():
            texts += ["\n\n", made.text]
            parts.append(Part(at + 2, path, found, made.pages, made.headings))
            at += 2 + len(made.text)
        waiting += [((*path, name), kind, data) for name, kind, data in reversed(made.attached)]
    note = mail.note
    if faults:
        more = f"; and {len(faults) - TOLD} more" if len(faults) > TOLD else ""
        note = "attached " + "; ".join(faults[:TOLD]) + more + "; the rest is indexed"
    return Converted("".join(texts), mail.title, mail.pages, mail.headings, note, parts=parts)


def suffix(name: str) -> str:
    """A file's ending, in small letters, with its dot."""
    return PurePath(name.rpartition(" > ")[2]).suffix.lower()
