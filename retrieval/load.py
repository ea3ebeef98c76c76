"""Files of a folder to documents' text; what cannot be read is named, with the reason."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from retrieval import attached
from retrieval.convert import Converted, Part, Unreadable, decoded
from retrieval.errors import SourceError
from retrieval.outline import outline
from retrieval.worker import Workers

VERSION = "6"
"""Raised when the same file may now give another text; documents of another version are read again."""
MAX_BYTES = 50_000_000

MEDIA = {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".mdx": "text/markdown",
    ".rst": "text/x-rst",
    ".txt": "text/plain",
    ".text": "text/plain",
    "": "text/plain",
    ".html": "text/html",
    ".htm": "text/html",
    ".xhtml": "text/html",
    ".mhtml": "multipart/related",
    ".mht": "multipart/related",
    ".pdf": "application/pdf",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".csv": "text/csv",
    ".tsv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/json",
    ".ndjson": "application/json",
    ".geojson": "application/json",
    ".eml": "message/rfc822",
    ".msg": "application/vnd.ms-outlook",
    ".odt": "application/vnd.oasis.opendocument.text",
    ".ods": "application/vnd.oasis.opendocument.spreadsheet",
    ".odp": "application/vnd.oasis.opendocument.presentation",
    ".epub": "application/epub+zip",
    ".rtf": "application/rtf",
    ".xml": "application/xml",
    ".rss": "application/xml",
    ".atom": "application/xml",
    ".ipynb": "application/x-ipynb+json",
}
CODE = tuple(
    """.py .pyi .pyx .java .go .rs .c .h .cc .cpp .cxx .hh .hpp .cu .cs .fs .vb .rb .php .pl .pm .sh .bash .zsh .fish .ps1 .bat
    .cmd .sql .kt .kts .groovy .gradle .swift .m .scala .clj .r .jl .lua .dart .ex .exs .erl .hs .ml .nim .zig .f90 .ts .tsx .jsx
    .mts .cts .vue .svelte .proto .thrift .graphql .tf .hcl .cmake .mk .sol""".split()  # noqa: SIM905
)
# Read as it is written: what is meant stands in its lines.
WRITTEN = tuple(
    """.yaml .yml .toml .ini .cfg .conf .properties .jsonc .json5 .log .tex .adoc .asciidoc .org .textile .wiki .srt .vtt .ics
    .vcf .diff .patch""".split()  # noqa: SIM905
)
MEDIA |= dict.fromkeys((*CODE, *WRITTEN), "text/plain")
CONVERTER = {
    MEDIA[".pptx"]: "pptx",
    MEDIA[".xlsx"]: "xlsx",
    "text/csv": "table",
    "application/json": "json",
    "message/rfc822": "mail",
    MEDIA[".msg"]: "outlook",
    **dict.fromkeys((MEDIA[".odt"], MEDIA[".ods"], MEDIA[".odp"]), "opendocument"),
    MEDIA[".epub"]: "epub",
    MEDIA[".rtf"]: "rtf",
    MEDIA[".xml"]: "xml",
    "application/x-ipynb+json": "notebook",
    "text/html": "html",
    "multipart/related": "archived",
    "application/pdf": "pdf",
    MEDIA[".docx"]: "docx",
    "text/x-rst": "rst",
}
PLAIN = frozenset(("text/plain", "text/x-rst", "application/pdf", "application/rtf"))
"""Media types whose text is not Markdown."""
PAGES = frozenset((".html", ".htm", ".xhtml"))
OFFICE = {"docx": "Word document", "pptx": "PowerPoint document", "xlsx": "Excel workbook"}
ZIPPED = OFFICE | {"opendocument": "OpenDocument file", "epub": "EPUB book"}
ADVICE = {
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"), "an archive: unpack it into the folder"),
    **dict.fromkeys((".doc", ".dot"), "of Word 97 to 2003: save it as .docx"),
    **dict.fromkeys((".xls", ".xlsb"), "of an older or binary Excel: save it as .xlsx"),
    ".ppt": "of PowerPoint 97 to 2003: save it as .pptx",
    **dict.fromkeys((".parquet", ".db", ".sqlite"), "a table: `smalti index table` declares one"),
}
# What documentation folders hold beside documents: nobody expects these to be searched, so they are passed over in silence.
QUIET = frozenset(
    """.png .jpg .jpeg .gif .svg .webp .ico .bmp .tif .tiff .avif .css .scss .less .js .mjs .map .woff .woff2 .ttf .otf .eot
    .mp3 .mp4 .webm .mov .wav .avi .pyc .lock .tmp .swp .bak .p7s .sig""".split()  # noqa: SIM905
)


class Skip(Exception):
    """A file that is not indexed.

    `final`: reading the same bytes again would end the same way. `keep`: what is indexed of the file stays.
    """

    def __init__(self, reason: str, *, final: bool = False, keep: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.final, self.keep = reason, final, keep


@dataclass(frozen=True, slots=True)
class Found:
    """A file met in the folder. `reason` says why it cannot be a document, else None."""

    source: str
    path: Path
    size: int = 0
    mtime_ns: int = 0
    reason: str | None = None


@dataclass(slots=True)
class Loaded:
    """A file's text. `headings` is None where the text is Markdown or plain, see `Converted`."""

    source: str
    title: str
    text: str
    media_type: str
    sha256: str
    size: int
    mtime_ns: int
    pages: list[int] = field(default_factory=list)
    headings: list[tuple[int, int, str]] = field(default_factory=list)
    note: str = ""
    parts: list[Part] = field(default_factory=list)


def walk(root: Path) -> Iterator[Found]:
    """Files under `root` (or `root` itself, a file), sorted; hidden ones and what no one searches are passed over.

    Symbolic links are not followed: a link inside the folder would double what it points to, one that leaves it would index
    what its owner did not name. The root itself may be a link. The folder of pictures, scripts and frames that a browser puts
    beside a page it saves (`page_files` beside `page.html`) is no documents either.

    Raises
    ------
    SourceError: the root is missing or cannot be listed.
    """
    try:
        if stat.S_ISREG(root.stat().st_mode):
            yield _found(root, root.name)
            return
        if not root.is_dir():
            raise SourceError(f"{root} is neither a folder nor a file: give the folder or file that holds the documents")
        top = _listed(root)
    except FileNotFoundError:
        raise SourceError(f"{root} does not exist: give the folder or file that holds the documents") from None
    except OSError as error:
        raise SourceError(f"{root} cannot be read ({error.strerror}): allow this user to read it") from error
    inside = os.path.realpath(root)
    stack = [iter(top)]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            continue
        if entry.name.startswith("."):
            continue
        source = os.path.relpath(entry.path, root).replace(os.sep, "/")
        try:
            source.encode()
        except UnicodeEncodeError:
            yield Found(source.encode("utf-8", "replace").decode(), Path(entry.path), reason="its name is not valid UTF-8")
            continue
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            if Path(entry.name).suffix.lower() not in QUIET:
                if target != inside and not target.startswith(inside + os.sep):
                    yield Found(source, Path(entry.path), reason="symbolic link that leaves the folder")
                elif not os.path.exists(entry.path):
                    yield Found(source, Path(entry.path), reason="symbolic link that leads nowhere")
        elif entry.is_dir():
            try:
                stack.append(iter(_listed(entry.path)))
            except OSError as error:
                yield Found(source, Path(entry.path), reason=f"folder cannot be listed ({error.strerror})")
        elif not entry.is_file():
            yield Found(source, Path(entry.path), reason="not a regular file")
        elif Path(entry.name).suffix.lower() not in QUIET:
            yield _found(Path(entry.path), source)


def _listed(folder: str | Path) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted, without the assets of saved pages."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    pages = {stem for entry in entries for stem, suffix in (os.path.splitext(entry.name),) if suffix.lower() in PAGES}
    assets = {stem + ending for stem in pages for ending in ("_files", ".files")}
    return [entry for entry in entries if entry.name not in assets]


def _found(path: Path, source: str) -> Found:
    try:
        status = path.stat()
    except OSError as error:
        return Found(source, path, reason=f"cannot be read ({error.strerror})")
    suffix, size = path.suffix.lower(), status.st_size
    reason = None
    if suffix not in MEDIA:
        reason = _no_converter(suffix)
    elif size == 0:
        reason = "empty"
    elif size > MAX_BYTES:
        reason = f"too large ({size / 1e6:.0f} MB; the limit is {MAX_BYTES / 1e6:.0f} MB)"
    return Found(source, path, size, status.st_mtime_ns, reason)


def _no_converter(suffix: str) -> str:
    return f"no converter for {suffix} files" + (f", {advice}" if (advice := ADVICE.get(suffix)) else "")


def load(found: Found, workers: Workers, known_sha256: str | None = None) -> Loaded | None:
    """Reads and converts a file. None when its bytes have `known_sha256`.

    Raises
    ------
    Skip: it cannot be read or converted, changed while it was read, or is gone.
    """
    data, status = _read(found.path)
    digest = hashlib.sha256(data).hexdigest()
    if digest == known_sha256:
        return None
    suffix = found.path.suffix.lower()
    media = MEDIA[suffix]
    try:
        converted = _convert(media, data, workers)
        if converted.attached:
            convert = lambda kind, each, seconds: _convert(kind, each, workers, seconds)  # noqa: E731
            converted = attached.joined(converted, _media, convert, workers.seconds)
    except Unreadable as error:
        raise Skip(str(error), final=True) from error
    text = converted.text
    headings = converted.headings or outline(text, suffix)
    if not text.strip():
        raise Skip("has no text", final=True)
    title = (
        converted.title
        or _title(text, media)
        or (found.path.name if suffix in CODE else "")
        or found.path.stem.replace("_", " ").replace("-", " ")
    )
    return Loaded(
        found.source,
        title[:300],
        text,
        media,
        digest,
        status.st_size,
        status.st_mtime_ns,
        converted.pages,
        headings,
        converted.note,
        converted.parts,
    )


def _media(name: str, kind: str) -> str | None:
    """The media type of what is attached, see `attached.Media`."""
    suffix = attached.suffix(name)
    if kind == "text/markdown":  # also a mail in Outlook's mail, which is text already
        return kind
    known = MEDIA.get(suffix) if suffix else None
    if known or kind in CONVERTER or kind in MEDIA.values():
        return known or kind
    if suffix in QUIET or kind.partition("/")[0] in ("image", "audio", "video", "font"):
        return None
    if kind.startswith("text/"):
        return "text/plain"
    raise Unreadable(_no_converter(suffix) if suffix else f"no converter for {kind or 'such'} files")


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    """Bytes of one version of the file: size and time are the same before and after."""
    try:
        for _ in range(3):
            with path.open("rb") as file:
                before = os.fstat(file.fileno())
                if before.st_size > MAX_BYTES:
                    raise Skip(f"too large ({before.st_size / 1e6:.0f} MB; the limit is {MAX_BYTES / 1e6:.0f} MB)")
                data = file.read(MAX_BYTES + 1)
                after = os.stat(path)
            if (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino) and len(
                data
            ) == after.st_size:
                if not data:
                    raise Skip("empty")
                return data, after
    except FileNotFoundError:
        raise Skip("deleted while the folder was read") from None
    except PermissionError:
        raise Skip("cannot be read (permission denied)") from None
    except OSError as error:
        raise Skip(f"cannot be read ({error.strerror})") from error
    raise Skip("changed while it was read; the next sync will take it", keep=True)


def _convert(media: str, data: bytes, workers: Workers, seconds: float | None = None) -> Converted:
    kind = CONVERTER.get(media)
    if not data:
        raise Unreadable("empty")
    if kind == "pdf":
        if b"%PDF" not in data[:1024]:
            raise Unreadable("broken PDF (it does not begin as one)")
    elif kind in ZIPPED:
        if kind in OFFICE and data.startswith(b"\xd0\xcf\x11\xe0"):
            raise Unreadable(f"{OFFICE[kind]} is protected by a password, or of Office 97 to 2003: save it anew without one")
        if not data.startswith(b"PK"):
            raise Unreadable(f"broken {ZIPPED[kind]} (it does not begin as one)")
    elif kind != "outlook" and b"\x00" in data[:8192] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Unreadable("binary, not text")
    if kind:
        return workers.convert(kind, data, seconds)
    return Converted(decoded(data))


FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.S)


def _title(text: str, media: str) -> str:
    """A Markdown document's title: its front matter's, or its first heading."""
    if media in PLAIN:
        return ""
    if front := FRONT_MATTER.match(text):
        if named := re.search(r"^title:\s*(.+?)\s*$", front[1], re.M):
            return named[1].strip("\"'")
        text = text[front.end() :]
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.S | re.M)
    heading = re.search(r"^#{1,3}[ \t]+(.+?)[ \t]*#*[ \t]*$|^(\S.*)\n=+[ \t]*$", text, re.M)
    return plain(heading[1] or heading[2]) if heading else ""


def plain(heading: str) -> str:
    """A Markdown heading without its marks: links, code, emphasis, `{#anchors}`."""
    heading = re.sub(r"\{[#:.][^}]*\}|<[^>]*>", "", heading)
    heading = re.sub(r"!?\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])?", r"\1", heading)
    return re.sub(r"[`*]|(?<!\w)_|_(?!\w)", "", heading).strip()
