"""Evaluation datasets (JSONL), what an endpoint predicted for a row, and both together as one result.

A dataset is a UTF-8 file with one JSON object a line:

    {"question": "How is a key revoked?", "expected_facts": ["smalti keys revoke"], "expected_sources": ["docs/keys.md"]}
    {"question": "What does a licence cost?", "unanswerable": true}

    {"inputs": {"text": "so glad it rains"}, "target": "positive"}

`question` (for agents and chat models) or `inputs` (a record, for classical models) is required.

| key | what is expected |
|---|---|
| `expected_facts` | strings the answer must all contain |
| `expected_sources` | paths of which one must be retrieved |
| `expected_answer` | the answer itself, but for case, punctuation and articles |
| `expected_pattern` | a regular expression found in the answer |
| `expected_schema` | a JSON schema that the answer, read as JSON, meets |
| `expected_tools` | names of the tools that are called, in any order |
| `expected_route` | the route that the router takes |
| `target` | the label (a string) or the number that a classical model predicts |
| `unanswerable` | the documents hold no answer, so that abstaining is right |

`group` names what rows have in common (a source document), for standard errors; without it the first expected source does.
MLflow's own shape, `{"inputs": {"question": "…"}, "expectations": {"expected_response": "…"}}`, is read too.

`id` names a row; without it the id is made from the row's content, so it stays the same when lines move. Other keys are kept as
`metadata`, unless they look like a misspelling of one of these.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evals import manifest
from evals.errors import DatasetError

KEYS = (
    "id", "question", "expected_facts", "expected_sources", "unanswerable", "expected_answer", "expected_pattern",
    "expected_schema", "expected_tools", "expected_route", "inputs", "target", "group",
)  # fmt: skip
_LISTS = ("expected_facts", "expected_sources", "expected_tools")
_TEXTS = ("expected_answer", "expected_pattern", "expected_route", "group")


@dataclass(frozen=True, slots=True)
class Row:
    """One question with what is expected of its answer. `line` is its line in the dataset file; `unanswerable` is None where the
    dataset does not say."""

    id: str
    question: str
    expected_facts: tuple[str, ...] = ()
    expected_sources: tuple[str, ...] = ()
    unanswerable: bool | None = None
    line: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    expected_answer: str = ""
    expected_pattern: str = ""
    expected_schema: Mapping[str, Any] | None = None
    expected_tools: tuple[str, ...] | None = None
    expected_route: str = ""
    inputs: Mapping[str, Any] | None = None
    target: str | float | None = None
    group: str = ""

    @property
    def asked(self) -> str | Mapping[str, Any]:
        """What is sent to the endpoint."""
        return self.question if self.inputs is None else self.inputs

    @property
    def cluster(self) -> str:
        """Rows of one cluster stand or fall together, so they count as one for standard errors."""
        return self.group or (self.expected_sources[0] if self.expected_sources else self.id)

    def expectations(self) -> dict[str, Any]:
        """What is expected, by key, as MLflow calls it."""
        keys = [key for key in KEYS if key.startswith("expected_")] + ["unanswerable", "target"]
        return {key: value for key in keys if (value := getattr(self, key)) not in ((), None, "", False)}


@dataclass(frozen=True, slots=True)
class Dataset:
    """A loaded dataset: `sha256` is that of the file's bytes, `rows` are in the file's order with unique ids."""

    path: Path
    sha256: str
    rows: tuple[Row, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What an endpoint answered to one question.

    Parameters
    ----------
    text: the answer as shown.
    sources: paths of the retrieved documents, best first, each once.
    abstained: the endpoint said that its documents hold no answer.
    latency_ms: question to full answer; None lets the evaluation measure it.
    request_id, trace_id: ids of the call and of its trace, where there are.
    error: why there is no answer (an infrastructure error, not a miss); the row is then left out of all metrics.
    passages: what was retrieved, best first: `source` and, where it is known, `text`.
    tools: names of the tools called, in order. route: what the router chose.
    tokens, cost: tokens used in all, US dollars.
    label: a classical model's answer. probabilities: its probability of each label.
    """

    text: str = ""
    sources: Sequence[str] = ()
    abstained: bool = False
    latency_ms: float | None = None
    request_id: str | None = None
    trace_id: str | None = None
    error: str | None = None
    passages: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[str] | None = None
    route: str = ""
    tokens: int | None = None
    cost: float | None = None
    label: str | float | None = None
    probabilities: Mapping[str, float] | None = None

    @property
    def said(self) -> str:
        """A classifier's label as text: 2.0 is the label 2."""
        if self.label is None:
            return self.text
        return str(int(self.label) if isinstance(self.label, float) and self.label.is_integer() else self.label)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Prediction:
        known = {key: value for key, value in data.items() if key in cls.__dataclass_fields__}
        tools = known.get("tools")
        known |= {key: tuple(known.get(key) or ()) for key in ("sources", "passages")}
        return cls(**{**known, "tools": None if tools is None else tuple(tools)})


@dataclass(frozen=True, slots=True)
class RowResult:
    """A row, its prediction and its scores by metric name (None where the metric does not apply to the row).

    `judged` holds what further scorers said, by their names: `value`, `rationale`, `source` (CODE or LLM_JUDGE), `error`.
    """

    row: Row
    prediction: Prediction
    scores: Mapping[str, float | None] = field(default_factory=dict)
    judged: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as in the run's journal. Scores are left out: they follow from the rest."""
        return {"row": asdict(self.row), "prediction": asdict(self.prediction)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RowResult:
        row: dict[str, Any] = {
            key: tuple(value) if key in _LISTS and value is not None else value for key, value in data["row"].items()
        }
        return cls(Row(**row), Prediction.from_dict(data["prediction"]), judged=data.get("judged") or {})


def load_dataset(path: str | Path, *, sealed: bool = True) -> Dataset:
    """Read and check a dataset file; raises `DatasetError` for the first thing wrong with it. Blank lines are skipped.

    `sealed`: whether it must be what its manifest says, where it has one (`evals.manifest`).
    """

    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(path, f"cannot be read ({error.strerror or error})", "give the path of a JSONL file") from error
    if sealed:
        manifest.check(path, data)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in data[:1024]:
        raise DatasetError(path, "is UTF-16 or binary, not UTF-8 text", "save it as UTF-8")

    rows: list[Row] = []
    lines_of: dict[str, int] = {}
    # Only b"\n" ends a line: JSON strings may hold U+2028 and the like, which str.splitlines would cut at.
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        row = _parse(path, number, raw, lines_of)
        lines_of[row.id] = number
        rows.append(row)
    if not rows:
        raise DatasetError(path, "holds no rows", 'write one JSON object a line, such as {"question": "…"}')
    return Dataset(path, hashlib.sha256(data).hexdigest(), tuple(rows))


def _parse(path: Path, number: int, raw: bytes, lines_of: Mapping[str, int]) -> Row:
    def wrong(problem: str, fix: str, key: str | None = None) -> DatasetError:
        return DatasetError(path, problem, fix, line=number, key=key)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise wrong("is given twice", "keep one", key)
            found[key] = value
        return found

    def no_number(constant: str) -> None:
        raise wrong(f"{constant} is no JSON", "leave the key out, or write a number")

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_number)
    except UnicodeDecodeError as error:
        raise wrong(f"byte {error.start + 1} is not UTF-8", "save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        fix = "write one complete JSON object a line"
        if number == 1 and b"," in raw and not raw.lstrip().startswith((b"{", b"[")):
            fix = 'from CSV: pandas.read_csv(FILE).to_json(OUT, orient="records", lines=True)'
        if number == 1 and raw.lstrip()[:1] == b"[":
            fix = "the file looks like a JSON array; write its elements one a line, without [ ] and commas"
        raise wrong(f"is not JSON ({error.msg} at column {error.colno})", fix) from None
    except RecursionError:
        raise wrong("is nested too deeply", "write a flat object") from None
    if not isinstance(value, dict):
        raise wrong(f"is {_kind(value)}, not an object", 'write an object such as {"question": "…"}')

    value = _unfolded(value)
    for key in value.keys() - set(KEYS):
        if close := difflib.get_close_matches(key.lower(), KEYS[1:], n=1, cutoff=0.8):
            raise wrong("is not a known key", f"did you mean {close[0]!r}?", key)
    inputs = value.get("inputs")
    if inputs is not None and (not isinstance(inputs, dict) or not inputs):
        raise wrong(f"is {_kind(inputs)}, not an object", 'write "inputs": {"column": value}', "inputs")
    if "question" not in value and inputs is None:
        raise wrong("is missing", 'add "question": "…"', "question")
    question = value.get("question", "" if inputs is None else json.dumps(inputs, ensure_ascii=False))
    if not isinstance(question, str):
        raise wrong(f"is {_kind(question)}, not a string", 'write "question": "…"', "question")
    if not question.strip():
        raise wrong("is empty", "write the question to ask", "question")

    lists: dict[str, tuple[str, ...]] = {}
    for key in _LISTS:
        items = value.get(key)
        if items is None:
            items = []
        if not isinstance(items, list):
            raise wrong(f"is {_kind(items)}, not a list of strings", f'write "{key}": ["…"]', key)
        for position, item in enumerate(items, start=1):
            if not isinstance(item, str) or not item.strip():
                problem = "empty" if isinstance(item, str) else f"{_kind(item)}, not a string"
                raise wrong(f"element {position} is {problem}", f'write "{key}": ["…"]', key)
        lists[key] = tuple(items)
    called = lists.pop("expected_tools")
    tools = None if value.get("expected_tools") is None else called  # an empty list expects that none is called

    texts: dict[str, str] = {}
    for key in _TEXTS:
        text = value.get(key) or ""
        if not isinstance(text, str):
            raise wrong(f"is {_kind(text)}, not a string", f'write "{key}": "…"', key)
        texts[key] = text
    try:
        re.compile(texts["expected_pattern"])
    except re.error as error:
        raise wrong(f"is no regular expression ({error})", "mend it", "expected_pattern") from None
    schema, target = value.get("expected_schema"), value.get("target")
    if schema is not None:
        _check_schema(schema, wrong)
    if target is not None and not isinstance(target, str | int | float):
        raise wrong(f"is {_kind(target)}, not a label or a number", 'write "target": "…"', "target")
    if isinstance(target, bool):
        target = str(target).lower()

    unanswerable = value.get("unanswerable")
    if not isinstance(unanswerable, bool | None):
        raise wrong(f"is {_kind(unanswerable)}, not true or false", 'write "unanswerable": true or leave it out', "unanswerable")
    if unanswerable and lists["expected_facts"]:
        raise wrong("is true in a row that also has expected_facts", "remove one of the two", "unanswerable")

    row_id = value.get("id")
    if row_id is None:
        wanted = [item for item in (*texts.values(), schema, list(tools or ()), inputs, target) if item]
        content = json.dumps([question, *map(list, lists.values()), bool(unanswerable), *wanted], ensure_ascii=False)
        base = hashlib.sha256(content.encode()).hexdigest()[:12]
        row_id, copy = base, 1
        while row_id in lines_of:  # the same row again: base-2, base-3 …
            copy += 1
            row_id = f"{base}-{copy}"
    elif isinstance(row_id, bool) or not isinstance(row_id, str | int) or not str(row_id).strip():
        raise wrong(f"is {_kind(row_id)}, not a name", 'write "id": "…" or leave it out', "id")
    row_id = str(row_id)
    if row_id in lines_of:
        raise wrong(f"{row_id!r} is already the id of line {lines_of[row_id]}", "give each row its own id", "id")
    metadata = {key: item for key, item in value.items() if key not in KEYS}
    return Row(
        row_id, question, lists["expected_facts"], lists["expected_sources"], unanswerable, number, metadata, **texts,
        expected_schema=schema, expected_tools=tools, inputs=inputs, target=target,
    )  # fmt: skip


def _unfolded(value: dict[str, Any]) -> dict[str, Any]:
    """A row in MLflow's shape, `{"inputs": {"question": …}, "expectations": {…}}`, as one of ours; others as they are."""
    expected, inputs = value.get("expectations"), value.get("inputs")
    if not isinstance(expected, dict):
        return value
    named = {"expected_answer" if key == "expected_response" else key: item for key, item in expected.items()}
    row = {**named, **{key: item for key, item in value.items() if key != "expectations"}}
    if isinstance(inputs, dict) and inputs.keys() == {"question"} and "question" not in value:
        row["question"] = row.pop("inputs")["question"]
    return row


def _check_schema(schema: Any, wrong: Any) -> None:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    if not isinstance(schema, dict):
        raise wrong(f"is {_kind(schema)}, not an object", 'write "expected_schema": {"type": "object"}', "expected_schema")
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise wrong(f"is no JSON schema ({error.message[:200]})", "mend it", "expected_schema") from None


def _kind(value: Any) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "empty" if value == "" else names.get(type(value), "null")
