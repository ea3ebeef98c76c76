"""Chats as language models learn them: checked, written by a chat template, and learnt where the assistant speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from finetune.packing import IGNORED, Tokens
from finetune.rows import alike, blank

ROLES = ("system", "user", "assistant", "tool")
FILL = "Fill it, or delete the row."
Tell = Callable[..., None]
"""`tell(code, column, message, fix, severity="error")`: notes a problem of the row."""


def learnt(message: Mapping[str, Any]) -> bool:
    """Whether a message of a chat is learnt: the assistant's, but those with `weight: 0`."""
    return message["role"] == "assistant" and message.get("weight") != 0


def plainly(messages: Any) -> Any:
    """Messages as chat templates want them: without keys that hold nothing, and with a call's arguments as an object."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return messages
    found = []
    for given in messages:
        message = {key: value for key, value in given.items() if value is not None} if None in given.values() else given
        if isinstance(calls := message.get("tool_calls"), list) and calls:
            message = {"content": "", **message, "tool_calls": [_call(call) for call in calls]}
        found.append(message)
    return found


def _call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments := function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": orjson.loads(arguments or "{}")}}
    except orjson.JSONDecodeError:
        return call


def read_messages(row: Mapping[str, Any], tell: Tell) -> tuple[str, ...] | None:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        fix = f'Write "messages": [{{"role": …, "content": …}}], or data.columns.messages=NAME; there are {", ".join(row)}.'
        if messages is None or isinstance(messages, list):
            tell("missing_key" if messages is None else "wrong_type", "messages", "There are no messages.", fix)
        else:
            kind = "text" if isinstance(messages, str) else type(messages).__name__
            tell("wrong_type", "messages", f"It is a {kind}, and no list of messages.", 'Write [{"role": …, "content": …}].')
        return None
    parts = []
    for number, message in enumerate(messages):
        part = _message(message, f"messages[{number}]", tell)
        if part is None:
            return None
        _order(messages, number, tell)
        if parts and learnt(message) and not learnt(messages[number - 1]) and alike(parts[-1], part):
            told = "It is the message before it, which teaches to repeat."
            tell("same_text", f"messages[{number}].content", told, "Delete the row, or write an answer.", "warning")
        parts.append(part)
    if not any(map(learnt, messages)):
        told = "The assistant says nothing" + (" that has a weight" if any(m["role"] == "assistant" for m in messages) else "")
        tell("all_masked", "messages", f"{told}, so nothing is learnt.", "Add a message of the assistant.")
        return None
    if (last := messages[-1]["role"]) != "assistant":
        told = f"The chat ends with a message of the role {last}, of which nothing is learnt."
        tell("role_order", f"messages[{len(messages) - 1}].role", told, "End it with an answer.", "warning")
    return tuple(parts)


def _message(message: Any, place: str, tell: Tell) -> str | None:
    """What a message says, with the calls it makes; None where something is wrong with it."""
    if not isinstance(message, dict) or "role" not in message:
        fix = f"Use one of: {', '.join(ROLES)}."
        fix = f"Write role and content for from and value. {fix}" if isinstance(message, dict) and "from" in message else fix
        return tell("missing_role", f"{place}.role", "The message has no role.", fix)
    if message["role"] not in ROLES:
        return tell("unknown_role", f"{place}.role", f"{message['role']!r} is not a role.", f"Use one of: {', '.join(ROLES)}.")
    said, calls = message.get("content"), message.get("tool_calls")
    if said is not None and not isinstance(said, str):
        return tell("wrong_type", f"{place}.content", f"{type(said).__name__} is no text.", "Write a string; parts are not read.")
    if calls is not None and not _are_calls(calls):
        fix = 'Write "tool_calls": [{"type": "function", "function": {"name": …, "arguments": {…}}}].'
        return tell("wrong_type", f"{place}.tool_calls", "They are no calls of functions.", fix)
    if not calls and (not said or blank(said)):
        return tell("empty_content", f"{place}.content", "It is empty.", FILL)
    if message.get("weight", 1) not in (0, 1) or isinstance(message.get("weight"), bool):
        return tell("wrong_type", f"{place}.weight", f"{message['weight']!r} is no weight.", "Write 0 (not learnt) or 1.")
    return (said or "") + (orjson.dumps(calls).decode() if calls else "")


def _are_calls(calls: Any) -> bool:
    functions = [call.get("function") for call in calls if isinstance(call, dict)] if isinstance(calls, list) else [None]
    return len(functions) == len(calls) and all(
        isinstance(function, dict) and isinstance(function.get("name"), str) and isinstance(function.get("arguments", {}), dict)
        for function in functions
    )


def _order(messages: Sequence[Mapping[str, Any]], number: int, tell: Tell) -> None:
    """Warn where a message stands where none of its role is expected; a template may write it nevertheless."""
    role, before = messages[number]["role"], messages[number - 1].get("role") if number else None
    told = None
    if role == "system" and number:
        told = "A second system message." if messages[0]["role"] == "system" else "A system message that is not the first."
    elif role == "tool" and before not in ("assistant", "tool"):
        told = "A tool's result, and no message of the assistant before it that could have called one."
    elif role == "assistant" and before in (None, "system"):
        told = "The assistant speaks, and nobody has asked."
    elif role == before and role in ("user", "assistant"):
        told = f"Two messages of the {role}, one after the other."
    if told:
        tell("role_order", f"messages[{number}].role", told, "Put the messages in the order that the model will see.", "warning")


def encode_chat(tokenizer: Any, row: Mapping[str, Any], tell: Tell) -> Tokens | None:
    return _refusable(lambda: _turns(tokenizer, row["messages"], tell, row.get("tools")), tell)


def chat_tokens(tokenizer: Any, row: Mapping[str, Any]) -> int:
    """How many tokens `encode_chat` makes of a row; 0 where the template refuses it."""
    found = _refusable(lambda: rendered(tokenizer, row["messages"], False, row.get("tools")), lambda *_: None)
    return 0 if found is None else len(found)


def _refusable(work: Callable[[], Any], tell: Tell) -> Any:
    try:
        return work()
    except Exception as error:  # a template may refuse a chat, by whatever error its functions raise
        if type(error).__module__.partition(".")[0] not in ("jinja2", "builtins"):
            raise
        told = f"The chat template refuses it ({' '.join(str(error).split())[:150]})."
        return tell("chat_template", "messages", told, "Put it as the template wants it, or give another by chat_template.")


def _turns(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tell: Tell, tools: Any = None) -> Tokens | None:
    """What the assistant says is learnt, with the token that ends its turn; the rest is read only."""
    ids: list[int] = []
    labels: list[int] = []
    for number, message in enumerate(messages, 1):
        if learnt(message):
            begun = rendered(tokenizer, messages[: number - 1], True, tools)
            if begun[: len(ids)] != ids:
                return _unstable(tell)
            labels += [IGNORED] * (len(begun) - len(ids))
            ids = begun
        upto = rendered(tokenizer, messages[:number], False, tools)
        if message.get("tool_calls"):
            silent = {key: value for key, value in message.items() if key != "tool_calls"}
            if rendered(tokenizer, [*messages[: number - 1], silent], False, tools) == upto:
                fix = "Give a chat_template that does, or write the calls into the content."
                told = "The chat template does not write the calls, so they would not be learnt."
                return tell("chat_template", f"messages[{number - 1}].tool_calls", told, fix)
        if upto[: len(ids)] != ids:
            return _unstable(tell)
        labels += upto[len(ids) :] if learnt(message) else [IGNORED] * (len(upto) - len(ids))
        ids = upto
    if tokenizer.eos_token_id not in [label for label in labels if label != IGNORED]:
        fix = "Let the chat template write eos_token after each message of the assistant, or set eos_token to what it writes."
        tell("no_eos", "messages", "No answer ends with the token that ends a text, so the model would learn never to stop.", fix)
        return None
    return Tokens(ids, labels)


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], ask: bool, tools: Any = None) -> list[int]:
    if not messages:
        return []
    text = tokenizer.apply_chat_template(list(messages), tools=tools or None, tokenize=False, add_generation_prompt=ask)
    return tokenizer.encode(text, add_special_tokens=False)


def _unstable(tell: Tell) -> None:
    message = "The chat template writes earlier messages differently once later ones follow, so what is learnt cannot be told."
    tell("chat_template", "messages", message, "Give another with chat_template: FILE.jinja.")
