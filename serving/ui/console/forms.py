"""The console's forms: fields, choices, files handed over, and how far something is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui.element import Element

from serving.ui.parts import set_text, tag


class _Form(Element):
    """A form; its buttons come after the fields that are built inside `with`."""

    def __init__(self, label: str, others: Sequence[tuple[str, str]]) -> None:
        super().__init__("form")
        self._label, self._others = label, others

    def __exit__(self, *given: Any) -> None:
        with tag("div", "form-buttons"):
            tag("button", "button", self._label, type="submit")
            for value, label in self._others:
                tag("button", "button quiet", label, type="submit", name="do", value=value)
        super().__exit__(*given)


def form(label: str, send: Callable[[dict[str, str]], Any], classes: str = "", others: Sequence[tuple[str, str]] = ()) -> Element:
    """A form whose named fields reach `send` as text; build its fields inside `with`.

    `others` are further buttons, by what they send as `do` and by what stands on them.
    """
    element = _Form(label, others).classes(f"inline-form {classes}")

    async def sent(event: Any) -> None:
        given = {str(key): str(value) for key, value in dict(event.args or {}).items()}
        result = send(given)
        if inspect.isawaitable(result):
            await result

    element.on("submit", sent, js_handler=_SENT)
    return element


_SENT = """(e) => {
    e.preventDefault();
    emit(Object.fromEntries([...new FormData(e.target, e.submitter)].filter((each) => typeof each[1] === "string")));
}"""


def handed(label: str, accept: str, on_file: Callable[[Mapping[str, Any]], Any], *, told: str = "") -> Element:
    """A button that has a person choose a file and sends it to `/uploads`; `on_file` gets what that answered."""
    with tag("label", "button quiet small handed") as element:
        said = tag("span", text=told or label)
        chosen = tag("input", "hidden-file", type="file", accept=accept, aria_label=label, data_upload=True)

    async def done(event: Any) -> None:
        answer = dict(event.args or {})
        set_text(said, str(answer.get("name") or label))
        result = on_file(answer)
        if inspect.isawaitable(result):
            await result

    chosen.on("uploaded", done, js_handler="(e) => emit(e.detail)")
    return element


def field(label: str, name: str, **props: Any) -> None:
    with tag("label", "labelled"):
        tag("span", text=label)
        tag("input", "field", name=name, **props)


def choice(label: str, name: str, options: Sequence[tuple[str, str]], chosen: str = "") -> None:
    with tag("label", "labelled"):
        tag("span", text=label)
        with tag("select", "field", name=name):
            for value, text in options:
                tag("option", text=text, value=value, selected=True if value == chosen else None)


def progress(told: str, done: int) -> None:
    """A bar under the words that say how far something is; `done` is in percent."""
    tag("p", "hint", told)
    with tag("div", "progress", role="progressbar", aria_label=told, aria_valuenow=done, aria_valuemin=0, aria_valuemax=100):
        tag("span").style(f"width: {done}%")
