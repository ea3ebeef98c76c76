"""A conversation as the tokens a model reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from serving.engines.llm import PLAIN_TEMPLATE
from serving.engines.rows import Refused


class Prompts:
    """Renders conversations by the tokenizer's chat template.

    Parameters
    ----------
    tokenizer: of transformers; it is used by one thread only.
    context: tokens that prompt and answer may have together.
    """

    def __init__(self, tokenizer: Any, context: int) -> None:
        self._tokenizer, self._context = tokenizer, context
        self.own_template = bool(tokenizer.chat_template)
        self._template = None if self.own_template else PLAIN_TEMPLATE.read_text("utf-8")
        template = tokenizer.chat_template
        self._reads_tools = "tools" in (orjson.dumps(template).decode() if isinstance(template, dict) else template or "")

    def tokens(self, body: Mapping[str, Any]) -> list[int]:
        """Ids of a prompt. Raises `Refused`: it cannot be rendered, or leaves no room for an answer."""
        if "prompt" in body:
            ids = self._tokenizer(body["prompt"]).input_ids
        else:
            ids = self._tokenizer(self._render(body), add_special_tokens=False).input_ids
        if not ids:
            raise Refused("The prompt is empty: send some text.", "messages")
        if len(ids) >= self._context:
            raise Refused(
                f"The prompt has {len(ids)} tokens; prompt and answer together may have {self._context}. Send less.",
                "messages",
            )
        return list(ids)

    def _render(self, body: Mapping[str, Any]) -> str:
        from jinja2.exceptions import TemplateError

        tools = body.get("tools") if body.get("tool_choice") != "none" else None
        forced = body.get("tool_choice") not in (None, "auto", "none")  # a grammar makes the call, whatever the model knows
        if tools and not self._reads_tools and not forced:
            raise Refused("This model's chat template takes no tools: use a model that was trained to call them.", "tools")
        try:
            text = self._tokenizer.apply_chat_template(
                [_message(message) for message in body["messages"]],
                tools=tools if self._reads_tools else None,
                chat_template=self._template,
                add_generation_prompt=True,
                tokenize=False,
            )
        except TemplateError as error:  # a template refuses, for instance, a role or an order of roles
            raise Refused(f"The model's chat template refuses the messages: {error}", "messages") from None
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise Refused(f"The model's chat template cannot render the messages: {error}", "messages") from None
        return str(text)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A Chat Completions message as templates read it: text only, and a call's arguments as an object."""
    content = message.get("content")
    if isinstance(content, list):
        raise Refused("The messages hold an image; this model reads text only.", "messages")
    made = {**message, "content": content or ""}
    if calls := message.get("tool_calls"):
        made["tool_calls"] = [{**call, "function": {**call["function"], "arguments": _object(call)}} for call in calls]
    return made


def _object(call: Mapping[str, Any]) -> Any:
    try:
        return orjson.loads(call["function"]["arguments"] or "{}")
    except orjson.JSONDecodeError:
        return call["function"]["arguments"]
