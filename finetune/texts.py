"""What language models are trained on: texts, prompts with responses, and chats, read, checked and turned into tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.chats import FILL, Tell, encode_chat, learnt, plainly, read_messages, rendered
from finetune.packing import IGNORED, Tokens
from finetune.problems import DataError, Problem
from finetune.rows import alike, blank, gone, no_text, normal, rows_of

if TYPE_CHECKING:
    from finetune.schema import RowsRecipe

MISSING = "is what programs write for a value that is missing."
_SUFFIXES = (".txt", ".md", ".rst")
_ROWS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_KEYS = {
    "cpt": ("text",),
    "sft-instruct": ("prompt", "response"),
    "sft-chat": ("messages", "tools"),
    "dpo": ("prompt", "chosen", "rejected"),
}


def read(
    task: str, path: Path, tokenizer: Any, length: int, data: RowsRecipe | None = None
) -> tuple[list[Tokens], list[Problem]]:
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
    make = ENCODERS[task]
    texts: list[Tokens] = []
    seen: dict[int, tuple[str, int]] = {}
    rows = cut = 0
    longest = (0, 0)
    for file, line, row, parts in scan(task, path, problems, data):
        tell = teller(problems, file, line)
        found = make(tokenizer, row, tell)
        if found is None:
            continue
        rows += 1
        if (key := hash(normals(parts))) in seen:
            repeated(problems, file, line, *seen[key])
            continue
        seen[key] = file, line
        if len(found.ids) > length and task != "cpt":
            cut, longest = cut + 1, max(longest, (len(found.ids), line))
        pieces = [Tokens(found.ids[at : at + length], found.labels[at : at + length]) for at in range(0, len(found.ids), length)]
        kept = [piece for piece in (pieces if task == "cpt" else pieces[:1]) if piece.targets]
        if not kept:
            nothing_left(tell, length)
        texts += kept
    if cut:
        problems.append(truncated(path, longest[1], cut, rows, length, "context_length"))
    if not texts and not any(problem.severity == "error" for problem in problems):
        problems.append(Problem("empty_file", str(path), None, None, "There is nothing to learn in it.", "Give it rows."))
    if any(problem.severity == "error" for problem in problems):
        raise DataError(problems)
    return texts, problems


def scan(
    task: str, path: Path, problems: list[Problem], data: RowsRecipe | None = None
) -> Iterator[tuple[str, int, Mapping[str, Any], tuple[str, ...]]]:
    """Rows that have what the task needs, by file and line, each with its texts in order; what is wrong goes to `problems`."""
    known = {*_KEYS[task], *(data.ignore_columns if data else ())}
    for file, line, row in _plain(path, problems, data) if task == "cpt" else _rows(path, problems, data):
        tell = teller(problems, file, line)
        if task == "sft-chat":
            row = {**row, "messages": plainly(row.get("messages"))}
            found = read_messages(row, tell)
        elif task == "dpo":
            row = {**row, "prompt": plainly(row.get("prompt"))} if isinstance(row.get("prompt"), list) else row
            found = _preference(row, tell)
            row = row if found is None else {**row, "chosen": found[-2], "rejected": found[-1]}
        else:
            keys = ("text",) if task == "cpt" else ("prompt", "response")
            given = [_string(row, key, tell) for key in keys]
            found = None if None in given else tuple(text for text in given if text is not None)
            if found is not None and task == "sft-instruct" and alike(*found):
                told = ("It is the prompt itself, which teaches to repeat.", "Delete the row, or write an answer.")
                tell("same_text", "response", *told, "warning")
        if found is not None:
            for key in row.keys() - known:  # once, as files of others have columns of their own
                known.add(key)
                told = ("The column is not read, here and in other rows.", "Delete it, or name it in data.ignore_columns.")
                tell("unknown_key", key, *told, "warning")
            yield file, line, row, found


def question(normals: Sequence[str], answers: int = 1) -> int:
    """What rows of the same question have in common: all of their texts but the answers, each as `normal` gives it."""
    return hash(" ".join(filter(None, normals[:-answers] or normals)))


def normals(parts: Sequence[str]) -> tuple[str, ...]:
    """A row's texts without regard to case and spaces."""
    return tuple(map(normal, parts))


def leaks(task: str, train: Path, held_out: Path, data: RowsRecipe | None = None) -> list[Problem]:
    """Rows of the evaluation whose question is trained on."""
    answers = 2 if task == "dpo" else 1
    trained = {question(normals(parts), answers): (file, line) for file, line, _, parts in scan(task, train, [], data)}
    return [
        leak(file, line, *where)
        for file, line, _, parts in scan(task, held_out, [], data)
        if (where := trained.get(question(normals(parts), answers)))
    ]


def leak(file: str, line: int, train_file: str, train_line: int) -> Problem:
    told = (f"It is also in {train_file}:{train_line}.", f"Delete it from {train_file}.")
    return Problem("leakage", file, line, None, *told)


def teller(problems: list[Problem], file: str, line: int | None) -> Tell:
    """Notes problems of one row."""

    def tell(code: str, column: str | None, message: str, fix: str, severity: Any = "error") -> None:
        problems.append(Problem(code, file, line, column, message, fix, severity))

    return tell


def repeated(problems: list[Problem], file: str, line: int, where: str, first: int) -> None:
    place = f"line {first}" if where == file else f"{where}:{first}"
    told = (f"It repeats {place}; it is left out.", "Delete one of the two.")
    problems.append(Problem("duplicate_row", file, line, None, *told, "warning"))


def nothing_left(tell: Tell, length: int) -> None:
    tell("all_masked", None, "Nothing of it is left to learn.", f"Shorten the prompt, or raise context_length ({length}).")


def truncated(
    path: Path, line: int, cut: int, rows: int, length: int, key: str, column: str | None = None, *, least: bool = False
) -> Problem:
    """`line`: that of the longest row. `least`: not all that may be too long were counted."""
    told = (
        f"{cut} of {rows} rows ({cut / rows:.1%}), this one the longest, have more than {length} tokens; their ends are not seen."
    )
    told = f"At least {told}" if least else told
    return Problem("truncated", str(path), line, column, told, f"Shorten them, or raise {key}.", "warning")


def _plain(path: Path, problems: list[Problem], data: RowsRecipe | None) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Files of text, each one text; JSON lines of `text`, each one."""
    files = [path]
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.is_file() or each.is_symlink())
        files = [each for each in found if each.suffix.lower() in (*_SUFFIXES, ".jsonl") and each.is_file()]
        others = [each for each in found if each not in files and not each.name.startswith(".")]
        named = f"{', '.join(_SUFFIXES)} or .jsonl"
        if not files:
            told = ("No file of texts is in the folder.", f"Put files there that end in {named}.")
            problems.append(Problem("empty_file", str(path), None, None, *told))
        elif others:
            told = f"Of the folder {len(others)} files or links are not read, of which this is the first."
            fix = f"Take it away, or make it a file that ends in {named}."
            problems.append(Problem("not_read", str(others[0]), None, None, told, fix, "warning"))
    for file in files:
        if file.suffix.lower() in _ROWS:
            yield from _rows(file, problems, data)
            continue
        try:
            with file.open("rb") as opened:
                if (told := no_text(opened.readline(100))) is not None:
                    problems.append(Problem("encoding", str(file), 1, None, *told[1:]))
                    continue
            yield str(file), 1, {"text": file.read_text(encoding="utf-8-sig")}
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            told = (f"Byte {error.start + 1} is not UTF-8.", "Save the file as UTF-8.")
            problems.append(Problem("encoding", str(file), line, None, *told))
        except OSError as error:
            problems.append(
                Problem("unreadable", str(file), None, None, f"It cannot be read ({error.strerror}).", "Look at its path.")
            )


def _rows(path: Path, problems: list[Problem], data: RowsRecipe | None) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    for line, row in rows_of(path, problems, columns=data.columns if data else None):
        yield str(path), line, row


def _string(row: Mapping[str, Any], key: str, tell: Tell) -> str | None:
    if key not in row:
        fix = f"Add it, or say what the file calls it: data.columns.{key}=NAME. There are {', '.join(row) or 'none'}."
        tell("missing_key", key, "The column is missing.", fix)
    elif not isinstance(row[key], str):
        tell("wrong_type", key, f"{type(row[key]).__name__} is no text.", "Write a string.")
    elif blank(row[key]):
        tell(f"empty_{key}", key, "It is empty.", FILL)
    else:
        if gone(row[key]):
            tell("missing_value", key, f"{row[key]!r} {MISSING}", FILL, "warning")
        return row[key]
    return None


def _begin(tokenizer: Any) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _text(tokenizer: Any, row: Mapping[str, Any], tell: Tell) -> Tokens | None:
    ids = [*_begin(tokenizer), *tokenizer.encode(row["text"], add_special_tokens=False), tokenizer.eos_token_id]
    return Tokens(ids, ids)


def _instruct(tokenizer: Any, row: Mapping[str, Any], tell: Tell) -> Tokens | None:
    asked = [*_begin(tokenizer), *tokenizer.encode(row["prompt"], add_special_tokens=False)]
    answer = [*tokenizer.encode(row["response"], add_special_tokens=False), tokenizer.eos_token_id]
    return Tokens([*asked, *answer], [IGNORED] * len(asked) + answer)


def _preference(row: Mapping[str, Any], tell: Tell) -> tuple[str, ...] | None:
    """The texts of a prompt, and the two answers."""
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        if not prompt:
            return tell("empty_prompt", "prompt", "It has no messages.", FILL)
        asked = {"messages": [*prompt, {"role": "assistant", "content": "x"}]}
        before = read_messages(asked, lambda code, column, *told: tell(code, (column or "").replace("messages", "prompt"), *told))
        before = before[:-1] if before else None
    else:
        text = _string(row, "prompt", tell)
        before = None if text is None else (text,)
    answers = [_string({**row, key: _said(row[key])} if key in row else row, key, tell) for key in ("chosen", "rejected")]
    if before is None or answers[0] is None or answers[1] is None:
        return None
    if answers[0].strip() == answers[1].strip():
        tell("same_answers", "rejected", "It is the same as the chosen one.", "Delete the row, or give two different answers.")
        return None
    if alike(answers[0], answers[1]):
        told = "It differs from the chosen one in case, spaces or forms of characters alone."
        tell("same_answers", "rejected", told, "Delete the row, unless that is what is to be learnt.", "warning")
    if alike(before[-1], answers[0]):
        told = ("It is the prompt itself, which teaches to repeat.", "Delete the row, or write an answer.")
        tell("same_text", "chosen", *told, "warning")
    return (*before, answers[0], answers[1])


def _said(answer: Any) -> Any:
    """An answer that is a list of one message of the assistant as the text that it says."""
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], dict) and answer[0].get("role") == "assistant":
        return answer[0].get("content")
    return answer


def read_preferences(
    path: Path, tokenizer: Any, length: int, data: RowsRecipe | None = None
) -> tuple[list[tuple[Tokens, Tokens]], list[Problem]]:
    """Prompts with the better and the worse answer, as tokens of which the answers are learnt; and warnings.

    Raises
    ------
    DataError: with every problem found, by file and line.
    """
    problems: list[Problem] = []
    found: list[tuple[Tokens, Tokens]] = []
    seen: dict[int, tuple[str, int]] = {}
    rows = cut = 0
    longest = (0, 0)
    for file, line, row, parts in scan("dpo", path, problems, data):
        tell = teller(problems, file, line)
        rows += 1
        if (key := hash(normals(parts))) in seen:
            repeated(problems, file, line, *seen[key])
            continue
        seen[key] = file, line
        turned(seen, normals(parts), tell)
        both = [answered(tokenizer, row["prompt"], row[key], tell) for key in ("chosen", "rejected")]
        kept = [Tokens(each.ids[:length], each.labels[:length]) for each in both if each is not None]
        if len(kept) < 2:
            continue
        if (most := max(len(each.ids) for each in both if each is not None)) > length:
            cut, longest = cut + 1, max(longest, (most, line))
        if not (kept[0].targets and kept[1].targets):
            nothing_left(tell, length)
            continue
        found.append((kept[0], kept[1]))
    if cut:
        problems.append(truncated(path, longest[1], cut, rows, length, "context_length"))
    if not found and not any(problem.severity == "error" for problem in problems):
        problems.append(Problem("empty_file", str(path), None, None, "There is nothing to learn in it.", "Give it rows."))
    if any(problem.severity == "error" for problem in problems):
        raise DataError(problems)
    return found, problems


def turned(seen: Mapping[int, tuple[str, int]], normals: Sequence[str], tell: Tell) -> None:
    """Warn where another row prefers the answers the other way round."""
    *asked, chosen, rejected = normals
    if chosen != rejected and (where := seen.get(hash((*asked, rejected, chosen)))) is not None:
        told = f"{where[0]}:{where[1]} prefers the other of these two answers."
        tell("conflicting_label", "chosen", told, "Keep the right one.", "warning")


def answered(tokenizer: Any, prompt: Any, answer: str, tell: Tell) -> Tokens | None:
    """A prompt, a text or the messages of a chat, with an answer to it."""
    if isinstance(prompt, str):
        return _instruct(tokenizer, {"prompt": prompt, "response": answer}, tell)
    asked = list(prompt)
    found = encode_chat(tokenizer, {"messages": [*asked, {"role": "assistant", "content": answer}]}, tell)
    if found is None:
        return None
    begun = len(rendered(tokenizer, asked, True))  # of a chat only the last answer is compared
    return Tokens(found.ids, [IGNORED] * begun + list(found.labels[begun:]))


__all__ = ["ENCODERS", "Tell", "learnt", "read", "read_preferences", "scan"]
ENCODERS = {"cpt": _text, "sft-instruct": _instruct, "sft-chat": encode_chat}
"""A task's `encode(tokenizer, row, tell)`, for rows that `scan` gave."""
