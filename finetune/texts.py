"""What language models are trained on: texts, prompts with responses, and chats, read, checked and turned into tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data import DataError, Problem, blank, json_lines
from finetune.packing import IGNORED, Tokens

ROLES = ("system", "user", "assistant", "tool")
_FILL = "Fill it, or delete the row."
_SUFFIXES = (".txt", ".md", ".rst")
Tell = Callable[..., None]
"""`tell(code, column, message, fix, severity="error")`: notes a problem of the row."""


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
    make = ENCODERS[task]
    texts: list[Tokens] = []
    seen: dict[tuple[int, ...], int] = {}
    rows = cut = 0
    for file, line, row, _ in scan(task, path, problems):
        tell = teller(problems, file, line)
        found = make(tokenizer, row, tell)
        if found is None:
            continue
        rows += 1
        if (first := seen.setdefault(tuple(found.ids), line)) != line and task != "cpt":
            repeated(problems, file, line, first)
            continue
        cut += len(found.ids) > length and task != "cpt"
        pieces = [Tokens(found.ids[at : at + length], found.labels[at : at + length]) for at in range(0, len(found.ids), length)]
        kept = [piece for piece in (pieces if task == "cpt" else pieces[:1]) if piece.targets]
        if not kept:
            nothing_left(tell, length)
        texts += kept
    if cut:
        problems.append(truncated(path, cut, rows, length, "context_length"))
    if not texts and not any(problem.severity == "error" for problem in problems):
        problems.append(Problem("empty_file", str(path), None, None, "There is nothing to learn in it.", "Give it rows."))
    if any(problem.severity == "error" for problem in problems):
        raise DataError(problems)
    return texts, problems


def scan(task: str, path: Path, problems: list[Problem]) -> Iterator[tuple[str, int, Mapping[str, Any], tuple[str, ...]]]:
    """Rows that have what the task needs, by file and line, each with its texts in order; what is wrong goes to `problems`."""
    for file, line, row in _plain(path, problems) if task == "cpt" else _rows(path, problems):
        tell = teller(problems, file, line)
        if task == "sft-chat":
            found = _messages(row, tell)
        elif task == "dpo":
            found = _preference(row, tell)
        else:
            keys = ("text",) if task == "cpt" else ("prompt", "response")
            given = [_string(row, key, tell) for key in keys]
            found = None if None in given else tuple(text for text in given if text is not None)
        if found is not None:
            yield file, line, row, found


def question(parts: Sequence[str], answers: int = 1) -> str:
    """Of a row's texts what makes it the same question as another: all but the answers, without regard to case and spaces."""
    return " ".join(" ".join(parts[:-answers] or parts).split()).casefold()


def leaks(task: str, train: Path, held_out: Path) -> list[Problem]:
    """Rows of the evaluation whose question is trained on."""
    answers = 2 if task == "dpo" else 1
    trained = {hash(question(parts, answers)): (file, line) for file, line, _, parts in scan(task, train, [])}
    return [
        leak(file, line, *where)
        for file, line, _, parts in scan(task, held_out, [])
        if (where := trained.get(hash(question(parts, answers))))
    ]


def leak(file: str, line: int, train_file: str, train_line: int) -> Problem:
    told = (f"It is also in {train_file}:{train_line}.", f"Delete it from {train_file}.")
    return Problem("leakage", file, line, None, *told)


def teller(problems: list[Problem], file: str, line: int | None) -> Tell:
    """Notes problems of one row."""

    def tell(code: str, column: str | None, message: str, fix: str, severity: Any = "error") -> None:
        problems.append(Problem(code, file, line, column, message, fix, severity))

    return tell


def repeated(problems: list[Problem], file: str, line: int, first: int) -> None:
    told = (f"It repeats line {first}; it is left out.", "Delete one of the two.")
    problems.append(Problem("duplicate_row", file, line, None, *told, "warning"))


def nothing_left(tell: Tell, length: int) -> None:
    tell("all_masked", None, "Nothing of it is left to learn.", f"Shorten the prompt, or raise context_length ({length}).")


def truncated(path: Path, cut: int, rows: int, length: int, key: str) -> Problem:
    told = f"{cut} of {rows} rows ({cut / rows:.1%}) are longer than {length} tokens; their ends are not seen."
    return Problem("truncated", str(path), None, None, told, f"Raise {key}.", "warning")


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


def _string(row: Mapping[str, Any], key: str, tell: Tell) -> str | None:
    if key not in row:
        tell("missing_key", key, "The column is missing.", f"Add {key!r}; the row has {', '.join(map(repr, row)) or 'none'}.")
    elif not isinstance(row[key], str):
        tell("wrong_type", key, f"{type(row[key]).__name__} is no text.", "Write a string.")
    elif blank(row[key]):
        tell(f"empty_{key}", key, "It is empty.", _FILL)
    else:
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


def _messages(row: Mapping[str, Any], tell: Tell) -> tuple[str, ...] | None:
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        tell(
            "missing_key" if messages is None else "wrong_type", "messages", "There are no messages.", 'Write "messages": [{…}].'
        )
        return None
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(message, dict) or "role" not in message:
            tell("missing_role", f"{place}.role", "The message has no role.", f"Use one of: {', '.join(ROLES)}.")
            return None
        if message["role"] not in ROLES:
            tell("unknown_role", f"{place}.role", f"{message['role']!r} is not a role.", f"Use one of: {', '.join(ROLES)}.")
            return None
        if (said := message.get("content")) is not None and not isinstance(said, str):
            tell("wrong_type", f"{place}.content", f"{type(said).__name__} is no text.", "Write a string; parts are not read.")
            return None
        if not said or blank(said):
            calls = message.get("tool_calls")
            told = "It calls a tool and says nothing: calls are not learnt, only what is said." if calls else "It is empty."
            tell("empty_content", f"{place}.content", told, "Write the call into its content." if calls else _FILL)
            return None
        _order(messages, number, tell)
    if all(message["role"] != "assistant" for message in messages):
        tell("all_masked", "messages", "The assistant says nothing, so nothing is learnt.", "Add a message of the assistant.")
        return None
    return tuple(message["content"] for message in messages)


def _order(messages: Sequence[Mapping[str, Any]], number: int, tell: Tell) -> None:
    """Warn where a message stands where none of its role is expected; a template may write it nevertheless."""
    role, before = messages[number]["role"], messages[number - 1]["role"] if number else None
    told = None
    if role == "system" and number:
        told = "A second system message." if messages[0]["role"] == "system" else "A system message that is not the first."
    elif role == "tool" and before not in ("assistant", "tool"):
        told = "A tool's result, and no message of the assistant before it that could have called one."
    elif role == before and role == "user":
        told = "Two messages of the user, one after the other."
    if told:
        tell("role_order", f"messages[{number}].role", told, "Put the messages in the order that the model will see.", "warning")


def _chat(tokenizer: Any, row: Mapping[str, Any], tell: Tell) -> Tokens | None:
    try:
        return _turns(tokenizer, row["messages"], tell)
    except Exception as error:  # a template may refuse a chat, by whatever error its functions raise
        if type(error).__module__.partition(".")[0] not in ("jinja2", "builtins"):
            raise
        told = f"The chat template refuses it ({' '.join(str(error).split())[:150]})."
        return tell("chat_template", "messages", told, "Put it as the template wants it, or give another by chat_template.")


def _turns(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tell: Tell) -> Tokens | None:
    """What the assistant says is learnt, with the token that ends its turn; the rest is read only."""
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


def _preference(row: Mapping[str, Any], tell: Tell) -> tuple[str, ...] | None:
    """The texts of a prompt, and the two answers."""
    prompt = row.get("prompt")
    if isinstance(prompt, list):
        asked = {"messages": [*prompt, {"role": "assistant", "content": "x"}]}
        before = _messages(asked, lambda code, column, *told: tell(code, (column or "").replace("messages", "prompt"), *told))
        before = before[:-1] if before else None
    else:
        text = _string(row, "prompt", tell)
        before = None if text is None else (text,)
    answers = [_string(row, key, tell) for key in ("chosen", "rejected")]
    if before is None or answers[0] is None or answers[1] is None:
        return None
    if answers[0].strip() == answers[1].strip():
        tell("same_answers", "rejected", "It is the same as the chosen one.", "Delete the row, or give two different answers.")
        return None
    return (*before, answers[0], answers[1])


def read_preferences(path: Path, tokenizer: Any, length: int) -> tuple[list[tuple[Tokens, Tokens]], list[Problem]]:
    """Prompts with the better and the worse answer, as tokens of which the answers are learnt; and warnings.

    Raises
    ------
    DataError: with every problem found, by file and line.
    """
    problems: list[Problem] = []
    found: list[tuple[Tokens, Tokens]] = []
    seen: dict[Any, int] = {}
    rows = cut = 0
    for file, line, row, parts in scan("dpo", path, problems):
        tell = teller(problems, file, line)
        rows += 1
        if (first := seen.setdefault(parts, line)) != line:
            repeated(problems, file, line, first)
            continue
        both = [answered(tokenizer, row["prompt"], row[key], tell) for key in ("chosen", "rejected")]
        kept = [Tokens(each.ids[:length], each.labels[:length]) for each in both if each is not None]
        if len(kept) < 2:
            continue
        cut += any(len(each.ids) > length for each in both if each is not None)
        if not (kept[0].targets and kept[1].targets):
            nothing_left(tell, length)
            continue
        found.append((kept[0], kept[1]))
    if cut:
        problems.append(truncated(path, cut, rows, length, "context_length"))
    if not found and not any(problem.severity == "error" for problem in problems):
        problems.append(Problem("empty_file", str(path), None, None, "There is nothing to learn in it.", "Give it rows."))
    if any(problem.severity == "error" for problem in problems):
        raise DataError(problems)
    return found, problems


def answered(tokenizer: Any, prompt: Any, answer: str, tell: Tell) -> Tokens | None:
    """A prompt, a text or the messages of a chat, with an answer to it."""
    if isinstance(prompt, str):
        return _instruct(tokenizer, {"prompt": prompt, "response": answer}, tell)
    asked = list(prompt)
    found = _chat(tokenizer, {"messages": [*asked, {"role": "assistant", "content": answer}]}, tell)
    if found is None:
        return None
    begun = len(_rendered(tokenizer, asked, True))  # of a chat only the last answer is compared
    return Tokens(found.ids, [IGNORED] * begun + list(found.labels[begun:]))


ENCODERS = {"cpt": _text, "sft-instruct": _instruct, "sft-chat": _chat}
"""A task's `encode(tokenizer, row, tell)`, for rows that `scan` gave."""
