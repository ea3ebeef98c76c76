"""Headings of text formats that no converter reads: their lines say what they are."""

from __future__ import annotations

import re

_ASCIIDOC = r"^(?P<mark>={1,6})[ \t]+(?P<title>\S.*)$"
_SECTION = r"^(?P<mark>\[{1,2})(?P<title>[^\[\]\n]{1,200})\]{1,2}[ \t]*(?:[#;].*)?$"
_LATEX = r"^[ \t]*\\(?P<kind>part|chapter|section|subsection|subsubsection)\*?\{(?P<title>[^{}\n]{1,300})\}"
HEADINGS = {
    **dict.fromkeys((".adoc", ".asciidoc"), re.compile(_ASCIIDOC, re.M)),
    ".org": re.compile(r"^(?P<mark>\*{1,6})[ \t]+(?P<title>\S.*)$", re.M),
    ".tex": re.compile(_LATEX, re.M),
    **dict.fromkeys((".toml", ".ini", ".cfg", ".conf"), re.compile(_SECTION, re.M)),
}
LEVELS = ("part", "chapter", "section", "subsection", "subsubsection")


def outline(text: str, suffix: str) -> list[tuple[int, int, str]]:
    """(offset, level, title) of the headings of a file with this ending; none for most."""
    pattern = HEADINGS.get(suffix)
    if pattern is None:
        return []
    found = []
    for match in pattern.finditer(text):
        said = match.groupdict()
        level = LEVELS.index(said["kind"]) + 1 if "kind" in said else 1 if pattern.pattern is _SECTION else len(said["mark"])
        found.append((match.start(), level, said["title"].strip()[:300]))
    return found
