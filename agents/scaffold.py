"""New projects from templates: ours, and those that packages offer under the entry point group `smalti.templates`.

An entry point names a folder: a `Path`, a string, or a package whose folder it is. Every file in it is copied, and `{{name}}`
in a text becomes the project's name.
"""

from __future__ import annotations

import contextlib
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

GROUP = "smalti.templates"
NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")


class TemplateError(Exception):
    """A project cannot be made; the message says why and what to do."""


def templates() -> dict[str, Path | None]:
    """Folders by template name; None for one that a package offers, which is loaded when it is used."""
    ours = {folder.name: folder for folder in sorted(Path(__file__).with_name("templates").iterdir()) if _is_template(folder)}
    return {**{entry.name: None for entry in metadata.entry_points(group=GROUP)}, **ours}


def _is_template(folder: Path) -> bool:
    return folder.is_dir() and (folder / "smalti.yaml").exists()


def create(name: str, template: str, parent: Path) -> list[Path]:
    """Make the project `parent/name`; gives its files. Raises TemplateError."""
    if not NAME.fullmatch(name):
        raise TemplateError(f"{name!r} is no name for an agent: use lower-case letters, digits, '-' and '_', a letter first")
    known = templates()
    if template not in known:
        raise TemplateError(f"there is no template {template!r}; there are {', '.join(known)}")
    folder, target = known[template] or _offered(template), parent / name
    if target.exists() and any(target.iterdir()):
        raise TemplateError(f"{target} is there already; choose another name, or remove it")
    made = []
    for source in sorted(folder.rglob("*")):
        if source.is_dir() or "__pycache__" in source.parts:
            continue
        path = target / source.relative_to(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = source.read_bytes()
        with contextlib.suppress(UnicodeDecodeError):  # a picture, a PDF: as it is
            content = content.decode().replace("{{name}}", name).encode()
        path.write_bytes(content)
        made.append(path)
    return made


def first_question(dataset: Path) -> str | None:
    """What the first row of an evaluation asks; None where there is none to read."""
    try:
        with dataset.open(encoding="utf-8") as rows:
            return str(json.loads(rows.readline())["question"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _offered(template: str) -> Path:
    (entry, *_) = metadata.entry_points(group=GROUP, name=template)
    try:
        found: Any = entry.load()
    except Exception as error:
        raise TemplateError(f"template {template!r} = {entry.value} does not load: {type(error).__name__}: {error}") from error
    folder = Path(found if isinstance(found, (str, Path)) else next(iter(found.__path__)))
    if not folder.is_dir():
        raise TemplateError(f"template {template!r} = {entry.value} names no folder: {folder}")
    return folder
