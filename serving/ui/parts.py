"""The pieces pages are set from: plain HTML elements with safe text, icons, the composer, a drawn answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from nicegui import ui
from nicegui.client import Client
from nicegui.element import Element

from serving.ui.markdown import Blocks
from serving.ui.turn import Source, Step, Turn, sureness


def icon(name: str, classes: str = "") -> Element:
    """One of our own line icons (`static/icons.svg`); silent to screen readers."""
    svg = f'<svg aria-hidden="true" focusable="false"><use href="/ui/icons.svg#{name}"></use></svg>'
    return ui.html(svg, sanitize=False, tag="span").classes(f"icon {classes}")  # our own constant, nothing of a user


def tag(name: str, /, classes: str = "", text: str | None = None, **props: Any) -> Element:
    """An HTML element. `text` becomes a text node and `props` attributes, never markup; `aria_label` means `aria-label`."""
    element = ui.element(name).classes(classes)
    if text is not None:
        element._text = text
    if name in ("input", "textarea") and props.get("type") not in ("checkbox", "radio", "hidden") and "value" in props:
        props["defaultValue"] = props.pop("value")  # Vue sets `value` anew at each drawing, over what is being typed
    for key, value in props.items():
        if value is not None:
            element.props[key.rstrip("_").replace("_", "-")] = value
    return element


def set_text(element: Element, text: str) -> None:
    element._text = text
    element.update()


def button(
    classes: str,
    label: str,
    on_click: Callable[[], Any] | None = None,
    *,
    glyph: str | None = None,
    text: str | None = None,
    **props: Any,
) -> Element:
    """A real `<button>`; `label` is what a screen reader says."""
    element = tag("button", classes, text, type="button", aria_label=label, title=label if text is None else None, **props)
    if glyph:
        with element:
            icon(glyph)
    if on_click is not None:
        element.on("click", on_click, [])
    return element


def frameless(client: Client) -> None:
    """Have a page say itself what its main part is: the `main` that NiceGUI puts around everything becomes a `div`."""
    if (slot := client.content.parent_slot) is not None:
        slot.parent.tag = "div"


class Composer(Element, component="static/composer.js"):
    """The question box. Typing stays in the browser; `on_send` gets the text, `on_file` what became of an upload."""

    def __init__(
        self,
        placeholder: str,
        on_send: Callable[[str], Any],
        on_stop: Callable[[], Any],
        on_file: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        super().__init__()
        self.props["placeholder"] = placeholder
        self.props["takes-files"] = on_file is not None
        if on_file is not None:
            self.on("file", lambda event: on_file(dict(event.args or {})))
        self.on("send", lambda event: on_send(str(event.args)))
        self.on("stop", on_stop, [])

    def busy(self, value: bool) -> None:
        self.props["busy"] = value


class Prose:
    """Markdown that grows: an element a block, so that what is finished is sent and drawn once."""

    def __init__(self) -> None:
        self._blocks = Blocks()
        self._drawn: list[ui.html] = []
        self._box = tag("div", "prose", dir="auto")

    def show(self, text: str, sources: dict[int, Source], *, whole: bool = False) -> None:
        start = self._blocks.update(text, sources, whole=whole)
        html = self._blocks.html
        for old in self._drawn[len(html) :]:
            old.delete()
        del self._drawn[len(html) :]
        for i in range(start, len(html)):
            if i < len(self._drawn):
                self._drawn[i].content = html[i]
            else:
                with self._box:
                    self._drawn.append(ui.html(html[i]).classes("block"))  # safe by rendering, and DOMPurify looks again


def source_row(turn: Turn) -> None:
    """The cited sources as small cards under an answer."""
    titles = [source.title for source in turn.sources.values()]
    with tag("nav", "sources", aria_label="Sources"):
        for number in sorted(turn.sources):
            source = turn.sources[number]
            label = source.heading[-1] if titles.count(source.title) > 1 and source.heading else source.title
            where = " › ".join(source.heading) or source.source
            extra = {"data-title": source.title, "data-where": where, "data-quote": source.quote}
            with tag("a", f"source tile-{number % 5}", href=source.url, target="_blank", rel="noopener noreferrer", **extra):
                tag("b", text=str(number))
                tag("span", text=label)


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


def how_answered(turn: Turn) -> None:
    """Folded: by what route, with what confidence, in which steps and how long each took."""
    steps = turn.steps
    total = max((step.offset_ms + step.ms for step in steps), default=0.0) or 1.0
    with tag("details", "how"):
        tag("summary", text="How this was answered" + (f" · {_milliseconds(total)}" if steps else ""))
        with tag("div", "how-body"):
            with tag("dl"):
                facts = {"Answer": turn.badge, "Route": turn.route.replace("_", " "), "Request": turn.request_id or ""}
                if turn.confidence is not None:
                    facts["Route"] += f", {sureness(turn.confidence)}"
                for name, value in facts.items():
                    if value:
                        tag("dt", text=name)
                        tag("dd", text=value)
            for step in steps:
                if not (step.given or step.gave):
                    _draw_step(step, total)
                    continue
                with tag("details", "step-more"):
                    with tag("summary", ""):
                        _draw_step(step, total)
                    for label, text in (("In", step.given), ("Out", step.gave)):
                        if text:
                            tag("b", text=label)
                            tag("pre", "payload", text, tabindex="0")


def _draw_step(step: Step, total: float) -> None:
    with tag("div", f"step kind-{step.kind if step.kind.isalpha() else 'other'} {'failed' if step.failed else ''}"):
        with tag("div", "name", text=step.name.replace("_", " ")):
            tag("small", text="failed" if step.failed else step.detail or step.kind)
        with tag("div", "lane"):
            bar = tag("i")
            bar.style(f"left:{min(98.0, 100 * step.offset_ms / total):.2f}%;width:{min(100.0, 100 * step.ms / total):.2f}%")
        tag("div", "ms", text=_milliseconds(step.ms))


def thinking() -> Element:
    """Three tiles that wait."""
    with tag("div", "thinking", role="img", aria_label="Working on the answer") as box:
        for _ in range(3):
            tag("i")
    return box


def age_group(at: float, now: float | None = None) -> str:
    """The heading a thread of that time stands under."""
    days = (datetime.fromtimestamp(now or time.time()).date() - datetime.fromtimestamp(at).date()).days
    return "Today" if days <= 0 else "Yesterday" if days == 1 else "This week" if days < 7 else "Earlier"


def moment(at: float, now: float | None = None) -> str:
    """A time as short as it can be said."""
    then, today = datetime.fromtimestamp(at), datetime.fromtimestamp(now or time.time())
    if then.date() == today.date():
        return then.strftime("%H:%M")
    return then.strftime("%-d %b, %H:%M") if then.year == today.year else then.strftime("%-d %b %Y")


class Latest:
    """Tells a load that a later one has overtaken, so that what is slow never replaces what was asked for after it."""

    def __init__(self) -> None:
        self._number = 0

    def begin(self) -> Callable[[], bool]:
        """A new load; what it gives says whether it is still the latest."""
        self._number = number = self._number + 1
        return lambda: number == self._number
