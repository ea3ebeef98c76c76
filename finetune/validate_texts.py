"""What is wrong with what language models are to learn, without their weights."""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import texts
from finetune.base_model import base_of
from finetune.findings import Findings, FindPii, look
from finetune.problems import Problem
from finetune.recipe import find

if TYPE_CHECKING:
    from finetune.schema import LanguageRecipe
COUNTED = 1000
"""Of the rows that may be too long the longest so many have their tokens counted."""


def look_at_texts(recipe: LanguageRecipe, problems: Findings, find_pii: FindPii | None) -> int:
    from finetune.tasks.language import load_tokenizer

    tokenizer = load_tokenizer(base_of(recipe), recipe.chat_template)
    _tokenizer(recipe, tokenizer, problems)
    train = find(recipe.data.train)
    rows, trained = _file(recipe, train, tokenizer, problems, find_pii, {})
    if recipe.data.eval is not None:
        rows += _file(recipe, find(recipe.data.eval), tokenizer, problems, find_pii, trained)[0]
    return rows


def _tokenizer(recipe: LanguageRecipe, tokenizer: Any, problems: Findings) -> None:
    from finetune.tasks.language import vocabulary

    folder = str(base_of(recipe))
    if len(tokenizer) > (known := vocabulary(base_of(recipe))):
        told = (
            f"The tokenizer has {len(tokenizer)} tokens, and the model knows {known}: a text with one of the others ends the run."
        )
        fix = "Save the model after model.resize_token_embeddings(len(tokenizer)), or take the tokenizer it came with."
        problems.append(Problem("unknown_tokens", folder, None, None, told, fix, "warning"))
    if tokenizer.eos_token_id is None:
        told = ("The tokenizer has no token that ends a text.", "Set eos_token in its tokenizer_config.json.")
        problems.append(Problem("no_eos", folder, None, None, *told))
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        told = "The token that pads also ends texts. Padding is told by its place here, so the end is still learnt;"
        told += " what masks it by its number elsewhere would teach the model never to stop."
        problems.append(Problem("pad_is_eos", folder, None, None, told, "Give the tokenizer a pad_token of its own.", "warning"))
    if recipe.task == "sft-chat" and not tokenizer.chat_template:
        told = ("The tokenizer has no chat template.", "Give one with chat_template: FILE.jinja.")
        problems.append(Problem("no_chat_template", folder, None, None, *told))


def _special(tokenizer: Any) -> re.Pattern[str] | None:
    """What finds the tokenizer's special tokens in a text."""
    tokens = sorted({token for token in tokenizer.all_special_tokens if token}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, tokens))) if tokens else None


def _file(
    recipe: LanguageRecipe,
    path: Path,
    tokenizer: Any,
    problems: Findings,
    find_pii: FindPii | None,
    trained: Mapping[int, tuple[str, int]],
) -> tuple[int, dict[int, tuple[str, int]]]:
    """Rows of a file or folder, and where each of its questions stands; `trained` has those of the training data."""
    if recipe.task == "dpo":
        return _preferences(recipe, path, tokenizer, problems, find_pii, trained)
    task, length = recipe.task, recipe.context_length
    encode, ready = texts.ENCODERS[task], tokenizer.eos_token_id is not None and (task != "sft-chat" or tokenizer.chat_template)
    overhead: dict[Any, int | None] = {}
    """Of each order of roles the tokens that the template adds; None where it has a fault."""
    seen: dict[int, tuple[str, int]] = {}
    questions: dict[int, tuple[str, int]] = {}
    longest: list[tuple[int, int, int, Mapping[str, Any]]] = []
    most = (0, 0)
    rows = cut = 0
    special = _special(tokenizer)
    for file, line, row, parts in texts.scan(task, path, problems, recipe.data):
        rows += 1
        for number, text in enumerate(parts):
            column = ("prompt", "response")[number] if task == "sft-instruct" else f"messages[{number}].content"
            column = "text" if task == "cpt" else column
            look(file, line, column, text, problems, find_pii)
            _mark(special, file, line, column, text, problems)
        if task == "sft-instruct" and parts[0].strip() == parts[1].strip():
            told = ("It is the prompt itself, which teaches to repeat.", "Delete the row, or write an answer.")
            problems.append(Problem("same_text", file, line, "response", *told, "warning"))
        if (key := texts.same(parts)) in seen:
            texts.repeated(problems, file, line, *seen[key])
            continue
        seen[key] = file, line
        asked = hash(texts.question(parts))
        if where := trained.get(asked):
            problems.append(texts.leak(file, line, *where))
        questions[asked] = file, line
        if not ready or task == "cpt":
            continue
        shape = tuple((message["role"], texts.learnt(message)) for message in row["messages"]) if task == "sft-chat" else None
        size = sum(len(text.encode()) for text in parts)
        calls = shape is not None and (row.get("tools") or any("tool_calls" in message for message in row["messages"]))
        around = None if calls else overhead.get(shape)
        if around is not None and size + around <= length:
            continue
        if around is not None and _read_first(row, parts) + around < length:  # cut off perhaps, but something is learnt
            heapq.heappush(longest, (size, rows, line, row))
            if len(longest) > COUNTED:
                heapq.heappop(longest)
            continue
        found = encode(tokenizer, row, texts.teller(problems, file, line))
        if found is None:
            overhead[shape] = None  # all of this shape are tried: each has this fault
            continue
        if not calls:
            overhead.setdefault(shape, _around(tokenizer, row, shape, size))
        if len(found.ids) > length:
            cut, most = cut + 1, max(most, (len(found.ids), line))
        if not any(label != texts.IGNORED for label in found.labels[1:length]):
            texts.nothing_left(texts.teller(problems, file, line), length)
    for _, _, line, row in longest:
        found = encode(tokenizer, row, lambda *_: None)
        if found is not None and len(found.ids) > length:
            cut, most = cut + 1, max(most, (len(found.ids), line))
    if cut:
        problems.append(texts.truncated(path, most[1], cut, rows, length, "context_length"))
    if not rows and not problems.counts:
        problems.append(Problem("empty_file", str(path), None, None, "There is nothing to learn in it.", "Give it rows."))
    return rows, questions


def _preferences(
    recipe: LanguageRecipe,
    path: Path,
    tokenizer: Any,
    problems: Findings,
    find_pii: FindPii | None,
    trained: Mapping[int, tuple[str, int]],
) -> tuple[int, dict[int, tuple[str, int]]]:
    """As `_file`, of prompts with two answers each. Tokens are counted where the bytes do not already show that a row fits."""
    seen: dict[int, tuple[str, int]] = {}
    questions: dict[int, tuple[str, int]] = {}
    most = (0, 0)
    rows = cut = 0
    special = _special(tokenizer)
    for file, line, row, parts in texts.scan("dpo", path, problems, recipe.data):
        rows += 1
        for number, text in enumerate(parts):
            column = "prompt" if isinstance(row["prompt"], str) else f"prompt[{number}].content"
            column = ("chosen", "rejected")[number - len(parts) + 2] if number >= len(parts) - 2 else column
            look(file, line, column, text, problems, find_pii)
            _mark(special, file, line, column, text, problems)
        if (key := texts.same(parts)) in seen:
            texts.repeated(problems, file, line, *seen[key])
            continue
        seen[key] = file, line
        texts.turned(seen, parts, texts.teller(problems, file, line))
        asked = hash(texts.question(parts, 2))
        if where := trained.get(asked):
            problems.append(texts.leak(file, line, *where))
        questions[asked] = file, line
        chat = not isinstance(row["prompt"], str)
        if tokenizer.eos_token_id is None or (chat and not tokenizer.chat_template):
            continue
        if not chat and sum(len(text.encode()) for text in parts) + 4 <= recipe.context_length:
            continue
        tell = texts.teller(problems, file, line)
        both = [texts.answered(tokenizer, row["prompt"], row[key], tell) for key in ("chosen", "rejected")]
        kept = [each for each in both if each is not None]
        if (longest := max((len(each.ids) for each in kept), default=0)) > recipe.context_length:
            cut, most = cut + 1, max(most, (longest, line))
        if any(all(label == texts.IGNORED for label in each.labels[1 : recipe.context_length]) for each in kept):
            texts.nothing_left(tell, recipe.context_length)
    if cut:
        problems.append(texts.truncated(path, most[1], cut, rows, recipe.context_length, "context_length"))
    if not rows and not problems.counts:
        problems.append(Problem("empty_file", str(path), None, None, "There is nothing to learn in it.", "Give it rows."))
    return rows, questions


def _read_first(row: Mapping[str, Any], parts: Sequence[str]) -> int:
    """Bytes of what stands before the first answer: no token is shorter than one."""
    messages = row.get("messages")
    first = next(i for i, message in enumerate(messages) if texts.learnt(message)) if messages else 1
    return sum(len(text.encode()) for text in parts[:first])


def _around(tokenizer: Any, row: Mapping[str, Any], shape: Any, size: int) -> int:
    """The most tokens that a template adds to messages of these roles."""
    if shape is None:
        return 4  # the beginning, the end, and what a tokenizer may put before each part
    return len(tokenizer.apply_chat_template(row["messages"], tokenize=False).encode()) - size + 4


def _mark(special: re.Pattern[str] | None, file: str, line: int, column: str, text: str, problems: Findings) -> None:
    if special is not None and (mark := special.search(text)):
        told = f"It has {mark[0]!r}, which the tokenizer reads as a sign of its own and not as text."
        fix = "Remove it: the chat template, and the end of a row, write such signs."
        problems.append(Problem("special_token", file, line, column, told, fix, "warning"))
