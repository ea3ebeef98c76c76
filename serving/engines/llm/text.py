"""From tokens to what a client reads: text as it grows, cut at stop strings, with tool calls taken out of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import orjson

_TAIL = 6
"""Tokens of the prompt that the first token is read with, so that it keeps its leading space."""
_BROKEN = "\ufffd"
_OPENERS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|$)", re.DOTALL)


class Detokenizer:
    """Text of tokens as they come; a character that is still being written is held back.

    Parameters
    ----------
    decode: text of token ids.
    prompt: ids before the first token.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._ids = list(prompt[-_TAIL:])
        self._read = len(self._ids)
        self._known = decode(self._ids) if self._ids else ""

    def add(self, token: int) -> str:
        self._ids.append(token)
        text = self._decode(self._ids)
        if len(text) <= len(self._known) or text.endswith(_BROKEN):
            return ""
        return self._move(text)

    def end(self) -> str:
        """What was held back: the bytes of a character that never became whole."""
        text = self._decode(self._ids) if self._ids else ""
        return self._move(text) if len(text) > len(self._known) else ""

    def _move(self, text: str) -> str:
        fresh = text[len(self._known) :]
        self._ids = self._ids[self._read :]  # the tokens read now are what the next ones are read after
        self._read = len(self._ids)
        self._known = self._decode(self._ids)
        return fresh


class Stops:
    """Cuts text before the first stop string; what may be the beginning of one is held back."""

    def __init__(self, stops: Collection[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False

    def add(self, text: str) -> str:
        if not self._stops:
            return text
        held = self._held + text
        found = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return held[: min(found)]
        keep = max(_overlap(held, stop) for stop in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def end(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0


class ToolCalls:
    """Takes calls of these tools out of a model's text.

    Read are the three forms that open models write: `<tool_call>{…}</tool_call>` (Hermes, Qwen), `[TOOL_CALLS][{…}]`
    (Mistral), and an answer that is nothing but `{"name": …, "parameters": …}` or a list of it (Llama, and what a grammar
    forces). What looks like a call and is none stays text.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = set(names)
        self._seen = ""
        self._held = ""
        self._holding = False

    def add(self, text: str) -> str:
        """The part that is text for sure."""
        if self._holding:
            self._held += text
            return ""
        text = self._held + text
        self._held = ""
        if not self._seen.strip() and text.lstrip()[:1] in ("{", "["):
            self._holding, self._held = True, text
            return ""
        found = [at for opener in _OPENERS if (at := text.find(opener)) >= 0]
        if found:
            self._holding, self._held = True, text[min(found) :]
            text = text[: min(found)]
        else:
            keep = max(_overlap(text, opener) for opener in _OPENERS)
            if not self._seen.strip() and not text.strip():
                keep = len(text)  # white space before a call is no answer
            self._held = text[len(text) - keep :]
            text = text[: len(text) - keep]
        self._seen += text
        return text

    def end(self) -> tuple[str, list[dict[str, str]]]:
        """The text that was held back, and the calls: `name` and `arguments` (JSON text)."""
        held, self._held = self._held, ""
        if not self._holding:
            return held, []
        calls: list[dict[str, str]] = []
        bodies = _CALL.findall(held) or [held.removeprefix("[TOOL_CALLS]").removeprefix("<|python_tag|>")]
        for body in bodies:
            found = self._read(body)
            if found is None:
                return held, []
            calls += found
        return "", calls

    def _read(self, body: str) -> list[dict[str, str]] | None:
        try:
            given = orjson.loads(body.strip())
        except orjson.JSONDecodeError:
            return None
        calls = []
        for call in given if isinstance(given, list) else [given]:
            function = call.get("function", call) if isinstance(call, dict) else None
            if not isinstance(function, dict) or function.get("name") not in self._names:
                return None
            arguments = function.get("arguments", function.get("parameters", {}))
            text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
            calls.append({"name": function["name"], "arguments": text})
        return calls or None


def token_text(decode: Callable[[list[int]], str], before: int, token: int) -> dict[str, Any]:
    """A token as log probabilities name it: what it adds to the text after the token `before`."""
    text = decode([before, token]).removeprefix(decode([before]))
    return {"token": text, "bytes": list(text.encode())}
