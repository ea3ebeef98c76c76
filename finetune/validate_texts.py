"""What is wrong with what language models are to learn, without their weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune import texts
from finetune.base_model import base_of
from finetune.chats import chat_tokens
from finetune.findings import Findings, FindPii, Looks
from finetune.fits import Fits
from finetune.packing import Tokens
from finetune.problems import Problem
from finetune.recipe import find

if TYPE_CHECKING:
    from finetune.schema import LanguageRecipe


def look_at_texts(recipe: LanguageRecipe, problems: Findings, find_pii: FindPii | None) -> int:
    from finetune.tasks.language import load_tokenizer

    tokenizer = load_tokenizer(base_of(recipe), recipe.chat_template)
    _tokenizer(recipe, tokenizer, problems)
    train, looks = find(recipe.data.train), Looks(problems, find_pii, tokenizer.all_special_tokens)
    rows, trained = _file(recipe, train, tokenizer, problems, looks, {})
    if recipe.data.eval is not None:
        rows += _file(recipe, find(recipe.data.eval), tokenizer, problems, looks, trained)[0]
    looks.done()
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


def _file(
    recipe: LanguageRecipe,
    path: Path,
    tokenizer: Any,
    problems: Findings,
    looks: Looks,
    trained: Mapping[int, tuple[str, int]],
) -> tuple[int, dict[int, tuple[str, int]]]:
    """Rows of a file or folder, and where each of its questions stands; `trained` has those of the training data."""
    task, answers = recipe.task, 2 if recipe.task == "dpo" else 1
    seen: dict[int, tuple[str, int]] = {}
    questions: dict[int, tuple[str, int]] = {}
    asks = partial(_encoded, task, tokenizer), partial(_tokens, task, tokenizer), partial(_around, tokenizer)
    fits = Fits(tokenizer, recipe.context_length, problems, *asks)
    endless, template = tokenizer.eos_token_id is None, bool(tokenizer.chat_template)
    rows = 0
    for file, line, row, parts in texts.scan(task, path, problems, recipe.data):
        rows += 1
        looks.add(file, line, parts, partial(_column, task, row, len(parts)))
        if (key := hash(plain := texts.normals(parts))) in seen:
            texts.repeated(problems, file, line, *seen[key])
            continue
        seen[key] = file, line
        if task == "dpo":
            texts.turned(seen, plain, texts.teller(problems, file, line))
        asked = texts.question(plain, answers)
        if where := trained.get(asked):
            problems.append(texts.leak(file, line, *where))
        questions[asked] = file, line
        messages = row["messages"] if task == "sft-chat" else row["prompt"] if task == "dpo" else None
        chat = not isinstance(messages, str | None)
        if task == "cpt" or endless or (chat and not template):
            continue
        shape: Any = tuple((message["role"], texts.learnt(message)) for message in messages) if chat else ()
        first = len(parts) - answers
        if task == "sft-chat":
            first = next(number for number, (_, learnt) in enumerate(shape) if learnt)
        sizes = [len(text.encode()) for text in parts]
        size = sum(sizes[:-2]) + max(sizes[-2:]) if task == "dpo" else sum(sizes)
        if chat and (row.get("tools") or any("tool_calls" in message for message in messages)):
            shape = None  # how long a template writes them is not known
        fits.add(file, line, row, size, parts[:first], shape)
    fits.done(path, rows)
    if not rows and not problems.counts:
        problems.append(Problem("empty_file", str(path), None, None, "There is nothing to learn in it.", "Give it rows."))
    return rows, questions


def _column(task: str, row: Mapping[str, Any], count: int, number: int) -> str:
    """Where the text of that number stands in a row that has `count` of them."""
    if task == "dpo" and number >= count - 2:
        return ("chosen", "rejected")[number - count + 2]
    if task == "dpo":
        return "prompt" if isinstance(row["prompt"], str) else f"prompt[{number}].content"
    if task == "sft-chat":
        return f"messages[{number}].content"
    return ("prompt", "response")[number] if task == "sft-instruct" else "text"


def _encoded(task: str, tokenizer: Any, row: Mapping[str, Any], tell: texts.Tell) -> list[Tokens] | None:
    if task == "dpo":
        both = [texts.answered(tokenizer, row["prompt"], row[key], tell) for key in ("chosen", "rejected")]
        found = [each for each in both if each is not None]
        return found if len(found) == 2 else None
    one = texts.ENCODERS[task](tokenizer, row, tell)
    return None if one is None else [one]


def _tokens(task: str, tokenizer: Any, row: Mapping[str, Any]) -> int:
    """Of a row's longest sequence."""
    if task == "sft-chat":  # written once, and not once for each turn
        return chat_tokens(tokenizer, row)
    return max((len(each.ids) for each in _encoded(task, tokenizer, row, lambda *_: None) or ()), default=0)


def _around(tokenizer: Any, row: Mapping[str, Any], size: int) -> int:
    """The most tokens that a template adds to messages of these roles."""
    messages = row.get("messages")
    if messages is None and isinstance(row["prompt"], list):
        answer = max(row["chosen"], row["rejected"], key=lambda text: len(text.encode()))
        messages = [*row["prompt"], {"role": "assistant", "content": answer}]
    if messages is None:
        return 4  # the beginning, the end, and what a tokenizer may put before each part
    return len(tokenizer.apply_chat_template(messages, tokenize=False).encode()) - size + 4
