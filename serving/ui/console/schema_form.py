"""Fields of a form from a JSON Schema (https://json-schema.org/draft/2020-12), and what was written there as values again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.ui.parts import tag

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SchemaField:
    """A value of the object that a schema describes; `name` is its path with dots."""

    name: str
    kind: str
    """string, integer, number, boolean, array or object."""
    required: bool
    default: Any
    options: Sequence[str] = ()
    about: str = ""

    @property
    def label(self) -> str:
        text = self.name.replace("_", " ").replace(".", ": ")
        return text[:1].upper() + text[1:]

    def draw(self, given: str = "") -> None:
        """The field, with what was written before; what is left empty has its default."""
        said = default_said(self.default)
        with tag("label", "labelled", title=self.about or None):
            with tag("span", text=self.label):
                if self.required:
                    tag("span", "needed", " needed")
            if self.options:
                with tag("select", "field", name=self.name, aria_label=self.label):
                    tag("option", text=f"{said} (default)" if said else "–", value="", selected=True if not given else None)
                    for option in self.options:
                        if option != said:
                            tag("option", text=option, value=option, selected=True if option == given else None)
                return
            numeric = (
                {"type": "number", "step": "1" if self.kind == "integer" else "any"} if self.kind in ("integer", "number") else {}
            )
            hint = said or ("with commas" if self.kind == "array" else "")
            needed = True if self.required else None
            told = f"about-{self.name}" if self.about else None
            given_as = {"name": self.name, "value": given, "placeholder": hint, "maxlength": 4000, "required": needed, **numeric}
            tag("input", "field", aria_label=self.label, aria_describedby=told, **given_as)
            if self.about:
                tag("small", text=self.about, id=told)


def fields(schema: Schema, prefix: str = "", root: Schema | None = None, *, optional: bool = False) -> Iterator[SchemaField]:
    """The fields of an object; those of objects in it have dotted names. Constants are left out.

    `optional`: the object may be left out, so that none of its fields is needed.
    """
    root = root or schema
    needed = set() if optional else set(schema.get("required") or ())
    for name, given in (schema.get("properties") or {}).items():
        one = _resolved(given, root)
        if "const" in one:
            continue
        path = f"{prefix}{name}"
        if one.get("type") == "object" and "properties" in one:
            may_lack = name not in needed and given.get("default", {}) is None
            yield from fields(one, f"{path}.", root, optional=optional or may_lack)
            continue
        kind = str(one.get("type", "string"))
        options = [str(each) for each in one.get("enum") or ()] or (["true", "false"] if kind == "boolean" else [])
        about = " ".join(str(given.get("description") or "").split())
        yield SchemaField(path, kind, name in needed, given.get("default"), options, about)


def values(known: Sequence[SchemaField], given: Mapping[str, str]) -> dict[str, Any]:
    """What was written, as the object; what was left empty is left out. What is no number stays text, which the API refuses."""
    made: dict[str, Any] = {}
    for each in known:
        text = given.get(each.name, "").strip()
        if text:
            *folders, last = each.name.split(".")
            at = made
            for folder in folders:
                at = at.setdefault(folder, {})
            at[last] = _value(each.kind, text)
    return made


def default_said(value: Any) -> str:
    if value is None or value == [] or isinstance(value, Mapping):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _value(kind: str, text: str) -> Any:
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
        if kind == "object" or (kind == "array" and text.startswith("[")):
            return json.loads(text)
    except ValueError:
        return text
    if kind == "boolean":
        return text == "true"
    return [part for each in text.split(",") if (part := each.strip())] if kind == "array" else text


def _resolved(schema: Schema, root: Schema) -> Schema:
    """A schema without references and without `null` among its choices."""
    if "$ref" in schema:
        found: Any = root
        for part in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found[part]
        return _resolved(found, root)
    for key in ("anyOf", "oneOf", "allOf"):
        choices = [each for each in schema.get(key) or () if each.get("type") != "null"]
        if choices:
            return {**schema, **_resolved(choices[0], root)}
    return schema
