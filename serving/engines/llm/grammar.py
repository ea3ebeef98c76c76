"""Answers held to a JSON schema, by llguidance (https://github.com/guidance-ai/llguidance)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from serving.engines.rows import Refused

if TYPE_CHECKING:
    import torch


_OPTIONS = '%llguidance {"no_forcing": true}'
"""Text that can only go on in one way is written token by token as well: what llguidance cuts it into by itself is not the text
where a vocabulary spells some characters as bytes and begins words with a space."""
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
"""Where in the grammar an error is, which who sent the schema has not seen."""


class Grammars:
    """Makes matchers for one tokenizer; built when the first answer needs one.

    Parameters
    ----------
    tokenizer: of transformers, with a fast backend.
    vocabulary: width of the model's logits.
    ends: ids of the tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Sequence[int]) -> None:
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, list(ends)
        self._made: Any = None

    def matcher(self, schema: Mapping[str, Any]) -> JsonMatcher:
        """A matcher of JSON that follows the schema. Raises `Refused` where it cannot be followed."""
        try:
            from llguidance import LLMatcher
        except ImportError:
            reason = "JSON-constrained answers need the package llguidance on the server (pip install 'smalti[local]')."
            raise Refused(reason, "response_format") from None
        if self._made is None:
            self._made = self._vocabulary_of()
        told = orjson.dumps({**schema, "x-guidance": {"whitespace_flexible": False, "lenient": True}}).decode()
        made = LLMatcher(self._made, LLMatcher.grammar_from_lark(f"{_OPTIONS}\nstart: %json {told}"), log_level=0)
        if made.is_error():
            reason = _PLACE.sub("", " ".join(made.get_error().partition(_OPTIONS)[0].split()).removesuffix(" 1 |"))[:300]
            raise Refused(f"The JSON schema cannot be followed: {reason}", "response_format")
        return JsonMatcher(made)

    def _vocabulary_of(self) -> Any:
        from llguidance.hf import from_tokenizer

        try:
            return from_tokenizer(self._tokenizer, n_vocab=self._vocabulary, eos_token=self._ends or None)
        except (ValueError, AttributeError) as error:
            raise Refused(f"The model's tokenizer cannot be held to a JSON schema: {error}", "response_format") from None


class JsonMatcher:
    """A `sampling.Matcher`."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def allow(self, logits: torch.Tensor) -> None:
        import numpy as np
        import torch

        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        width = logits.shape[-1]
        allowed = torch.zeros(width, dtype=torch.bool)
        allowed[: len(bits)] = torch.from_numpy(bits[:width].astype(bool))
        logits.masked_fill_(~allowed.to(logits.device), float("-inf"))

    def take(self, token: int) -> bool:
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"The grammar refused a token: {self._matcher.get_error()}")
        return bool(self._matcher.is_stopped())


def schema_of(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema a request's answer must follow: of a tool it must call, or of its `response_format`."""
    choice, tools = body.get("tool_choice"), body.get("tools") or ()
    if choice == "required" or isinstance(choice, Mapping):
        wanted = (choice.get("function") or {}).get("name") if isinstance(choice, Mapping) else None
        functions = [tool["function"] for tool in tools if wanted in (None, tool["function"]["name"])]
        if not functions:
            raise Refused(f"'tool_choice' asks for {wanted or 'a tool'!r}, which is not among 'tools'.", "tool_choice")
        return {"anyOf": [_call_of(function) for function in functions]}
    given = body.get("response_format") or {}
    if given.get("type") == "json_object":
        return {"type": "object"}
    if given.get("type") == "json_schema":
        return given["json_schema"].get("schema") or {}
    return None


def _call_of(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("parameters") or {"type": "object"}
    properties = {"name": {"const": function["name"]}, "arguments": arguments}
    return {"type": "object", "properties": properties, "required": ["name", "arguments"], "additionalProperties": False}
