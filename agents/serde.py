"""Checkpoints in few bytes: messages as short tuples, compressed.

A thread's checkpoint holds all its messages and is written after every run, so what a message costs in bytes and in time to
read back counts. Anything but a plain message is left to LangGraph's own serializer.
"""

from __future__ import annotations

import zlib
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

MARK = "smalti:messages"
COMPRESSED = "+zlib"
COMPRESS_FROM = 2_048
"""Bytes from which compression is worth its time."""

_HUMAN = {"content", "id", "type", "additional_kwargs", "response_metadata", "name"}
_AI = _HUMAN | {"tool_calls", "invalid_tool_calls", "usage_metadata"}


def pack(message: Any) -> Any:
    """A message as a tuple, or as it is where it holds more than a tuple keeps."""
    if type(message) is HumanMessage and isinstance(message.content, str):
        if not (message.additional_kwargs or message.response_metadata or message.name) and message.model_fields_set <= _HUMAN:
            return (0, message.id, message.content)
    elif type(message) is AIMessage and isinstance(message.content, str):
        plain = not (message.additional_kwargs or message.name or message.tool_calls or message.invalid_tool_calls)
        if plain and message.model_fields_set <= _AI:
            return (1, message.id, message.content, message.response_metadata, message.usage_metadata)
    return message


def unpack(packed: Any) -> Any:
    if not isinstance(packed, (tuple, list)):
        return packed
    if packed[0] == 0:
        return HumanMessage.model_construct(content=packed[2], id=packed[1], additional_kwargs={}, response_metadata={})
    return AIMessage.model_construct(
        content=packed[2],
        id=packed[1],
        additional_kwargs={},
        response_metadata=packed[3],
        usage_metadata=packed[4],
        tool_calls=[],
        invalid_tool_calls=[],
    )


class CompactSerializer(JsonPlusSerializer):
    """LangGraph's serializer, with packed messages and compression. Reads what the plain one wrote."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        values = obj.get("channel_values") if isinstance(obj, dict) else None
        if isinstance(values, dict) and isinstance(messages := values.get("messages"), list):
            obj = {**obj, "channel_values": {**values, "messages": {MARK: [pack(m) for m in messages]}}}
        kind, data = super().dumps_typed(obj)
        if len(data) >= COMPRESS_FROM:
            return kind + COMPRESSED, zlib.compress(data, 1)
        return kind, data

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        kind, raw = data
        if kind.endswith(COMPRESSED):
            kind, raw = kind.removesuffix(COMPRESSED), zlib.decompress(raw)
        obj = super().loads_typed((kind, raw))
        values = obj.get("channel_values") if isinstance(obj, dict) else None
        if isinstance(values, dict) and isinstance(packed := values.get("messages"), dict) and MARK in packed:
            values["messages"] = [unpack(p) for p in packed[MARK]]
        return obj
