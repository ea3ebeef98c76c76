"""What language models are trained on: texts, prompts with responses, and chats, read, checked and turned into tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data import DataError, Problem, json_lines
from finetune.packing import IGNORED, Tokens

ROLES = ("system", "user", "assistant", "tool")
_SUFFIXES = (".txt", ".md", ".rst")


def read(task: str, path: Path, tokenizer: Any, length: int) -> tuple[list[Tokens], list[Problem]]:
    """The texts of a file or folder as tokens, with warnings.

    Parameters
    ----------
    task: cpt, sft-instruct or sft-chat.
    length: tokens a text may have; cpt cuts longer ones into pieces, the others cut their end off and warn.

    Raises
    ------
    DataError: with every problem found, by file and line.
    """
    problems: list[Problem] = []
    if tokenizer.eos_token_id is None:
        fix = "Set eos_token in the base model's tokenizer_config.json."
        raise DataError([Problem("no_eos", str(path), None, None, "The tokenizer has no token that ends a text.", fix)])
    make = {"cpt": _text, "sft-instruct": _instruct, "sft-chat": _chat}[task]
    texts: list[Tokens] = []
    seen: dict[tuple[int, ...], int] = {}
    rows = cut = 0
    for file, line, row in _plain(path, problems) if task == "cpt" else _rows(path, problems):
        found = make(tokenizer, row, lambda *what, at=(file, line): problems.append(Problem(what[0], at[0], at[1], *what[1:])))
        if found is None:
            continue
        rows += 1
        if (first := seen.setdefault(tuple(found.ids), line)) != line and task != "cpt":
            told = ("It repeats line " + str(first) + "; it is left out.", "Delete one of the two.", "warning")
            problems.append(Problem("duplicate_row", file, line, None, *told))  # pyright: ignore[reportArgumentType]
            continue
        cut += len(found.ids) > length and task != "cpt"
        pieces = [Tokens(found.ids[at : at + length], found.labels[at : at + length]) for at in range(0, len(found.ids), length)]
        kept = [piece for piece in (pieces if task == "cpt" else pieces[:1]) if piece.targets]
        if not kept:
            what = ("all_masked", "Nothing of it is left to learn.", f"Shorten the prompt, or raise context_length ({length}).")
            problems.append(Problem(what[0], file, line, None, what[1], what[2]))
        texts += kept
    if cut:
        told = f"{cut} of {rows} rows ({cut / rows:.1%}) are longer than {length} tokens; their ends are not seen."
        problems.append(Problem("truncated", str(path), None, None, told, "Raise context_length.", "warning"))
    if not texts and not any(problem.severity == "error" for problem in problems):
        problems.append(Problem("empty_file", str(path), None, None, "There is nothing to learn in it.", "Give it rows."))
    if any(problem.severity == "error" for problem in problems):
        raise DataError(problems)
    return texts, problems


def _plain(path: Path, problems: list[Problem]) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Files of text, each one text; JSON lines of `text`, each one."""
    files = sorted(each for each in path.rglob("*") if each.suffix in _SUFFIXES and each.is_file()) if path.is_dir() else [path]
    for file in files:
        if file.suffix == ".jsonl":
            yield from _rows(file, problems)
            continue
        try:
            yield str(file), 1, {"text": file.read_text(encoding="utf-8")}
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            told = (f"Byte {error.start + 1} is not UTF-8.", "Save the file as UTF-8.")
            problems.append(Problem("encoding", str(file), line, None, *told))
        except OSError as error:
            problems.append(
                Problem("unreadable", str(file), None, None, f"It cannot be read ({error.strerror}).", "Look at its path.")
            )


def _rows(path: Path, problems: list[Problem]) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    for line, row in json_lines(path, problems):
        yield str(path), line, row


Tell = Callable[..., None]
"""`tell(code, column, message, fix)`: notes a problem of the row."""


def _string(row: Mapping[str, Any], key: str, tell: Tell) -> str | None:
    if key not in row:
        tell("missing_key", key, "The column is missing.", f"Add {key!r}; the row has {', '.join(map(repr, row)) or 'none'}.")
    elif not isinstance(row[key], str):
        tell("wrong_type", key, f"{type(row[key]).__name__} is no text.", "Write a string.")
    elif not row[key].strip():
        tell(f"empty_{key}", key, "It is empty.", "Fill it, or delete the row.")
    else:
        return row[key]
    return None


def _begin(tokenizer: Any) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _text(tokenizer: Any, row: Mapping[str, Any], tell: Tell) -> Tokens | None:
    text = _string(row, "text", tell)
    if text is None:
        return None
    ids = [*_begin(tokenizer), *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    return Tokens(ids, ids)


def _instruct(tokenizer: Any, row: Mapping[str, Any], tell: Tell) -> Tokens | None:
    prompt, response = _string(row, "prompt", tell), _string(row, "response", tell)
    if prompt is None or response is None:
        return None
    asked = [*_begin(tokenizer), *tokenizer.encode(prompt, add_special_tokens=False)]
    answer = [*tokenizer.encode(response, add_special_tokens=False), tokenizer.eos_token_id]
    return Tokens([*asked, *answer], [IGNORED] * len(asked) + answer)


def _chat(tokenizer: Any, row: Mapping[str, Any], tell: Tell) -> Tokens | None:
    """What the assistant says is learnt, with the token that ends its turn; the rest is read only."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        tell(
            "missing_key" if messages is None else "wrong_type", "messages", "There are no messages.", 'Write "messages": [{…}].'
        )
        return None
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            tell("unknown_role", f"{place}.role", f"{role!r} is not a role.", f"Use one of: {', '.join(ROLES)}.")
            return None
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            tell("empty_content", f"{place}.content", "It is no text, or empty.", "Fill it, or delete the row.")
            return None
    if all(message["role"] != "assistant" for message in messages):
        tell("all_masked", "messages", "The assistant says nothing, so nothing is learnt.", "Add a message of the assistant.")
        return None
    ids: list[int] = []
    labels: list[int] = []
    for number, message in enumerate(messages, 1):
        learnt = message["role"] == "assistant"
        if learnt:
            begun = _rendered(tokenizer, messages[: number - 1], True)
            if begun[: len(ids)] != ids:
                return _unstable(tell)
            labels += [IGNORED] * (len(begun) - len(ids))
            ids = begun
        upto = _rendered(tokenizer, messages[:number], False)
        if upto[: len(ids)] != ids:
            return _unstable(tell)
        labels += upto[len(ids) :] if learnt else [IGNORED] * (len(upto) - len(ids))
        ids = upto
    if tokenizer.eos_token_id not in [label for label in labels if label != IGNORED]:
        fix = "Let the chat template write eos_token after each message of the assistant, or set eos_token to what it writes."
        tell("no_eos", "messages", "No answer ends with the token that ends a text, so the model would learn never to stop.", fix)
        return None
    return Tokens(ids, labels)


def _rendered(tokenizer: Any, messages: Sequence[Mapping[str, Any]], ask: bool) -> list[int]:
    if not messages:
        return []
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
    return tokenizer.encode(text, add_special_tokens=False)


def _unstable(tell: Tell) -> None:
    message = "The chat template writes earlier messages differently once later ones follow, so what is learnt cannot be told."
    tell("chat_template", "messages", message, "Give another with chat_template: FILE.jinja.")
