"""Review queues: answers for people to judge by a schema of labels, how far they agree, and a dataset of what they said.

A label's fields are those of MLflow's label schemas (https://mlflow.org/docs/latest/genai/assessments/): its `type` is feedback
on the answer, or an expectation, which becomes the dataset's. Nobody sees what others said of an item before having judged it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from sqlalchemy import Engine, delete, func, insert, select
from sqlalchemy.exc import IntegrityError

from evals.collect import EXPECTED
from evals.tables import create, now, review_items, review_labels, review_queues
from governance.call import CallError, bad_request, not_found

MAX_ITEMS = 10_000
MAX_CONTENT = 256 * 1024
"""Items of one queue; characters of one item's JSON."""


class Input(BaseModel):
    """How a label is given."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["boolean", "categorical", "numeric", "text", "text_list"]
    options: list[str] | None = None
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _fits(self) -> Input:
        if (self.type == "categorical") != (self.options is not None) or (self.options is not None and len(self.options) < 2):
            raise ValueError("a categorical input, and no other, has at least two options")
        if self.type != "numeric" and (self.min is not None or self.max is not None):
            raise ValueError("min and max are for a numeric input")
        return self

    def check(self, value: Any) -> str | None:
        """What is wrong with a value; None for a good one."""
        if self.type == "boolean":
            return None if isinstance(value, bool) else "true or false"
        if self.type == "categorical":
            return None if value in (self.options or ()) else f"one of {', '.join(self.options or ())}"
        if self.type == "numeric":
            low, high = -math.inf if self.min is None else self.min, math.inf if self.max is None else self.max
            good = (
                isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high
            )
            return None if good else f"a number from {low:g} to {high:g}"
        if self.type == "text_list":
            good = isinstance(value, list) and len(value) <= 100 and all(isinstance(each, str) and each.strip() for each in value)
            return None if good else "a list of strings"
        return None if isinstance(value, str) and value.strip() and len(value) <= 10_000 else "a string"


class Label(BaseModel):
    """One thing that reviewers say of an item."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
    type: Literal["feedback", "expectation"] = "feedback"
    title: Annotated[str, Field(max_length=200)] = ""
    instruction: Annotated[str, Field(max_length=4000)] = ""
    input: Input
    required: bool = True

    @model_validator(mode="after")
    def _known(self) -> Label:
        if self.type == "expectation" and self.name not in EXPECTED:
            raise ValueError(f"an expectation is one of {', '.join(EXPECTED)}")
        return self


class Queue(BaseModel):
    """A queue: for which endpoint's answers, who reviews, and what they say."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    endpoint: Annotated[str, Field(min_length=1, max_length=256)]
    labels: Annotated[list[Label], Field(min_length=1, max_length=20)]
    reviewers: list[Annotated[str, Field(pattern=r"^(user|group|service_principal):.+$")]] = []
    """Who may review besides those who manage the endpoint: `user:NAME`, `group:NAME`, `service_principal:NAME`."""
    reviews_per_item: Annotated[int, Field(ge=1, le=20)] = 1
    """Where it is not given: two, which agreement takes, if two or more may review; else one."""
    instruction: Annotated[str, Field(max_length=10_000)] = ""

    @model_validator(mode="before")
    @classmethod
    def _enough(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "reviews_per_item" in given:
            return given
        named = given.get("reviewers")
        several = isinstance(named, list) and (
            len(set(map(str, named))) > 1 or any(str(each).startswith("group:") for each in named)
        )
        return {**given, "reviews_per_item": 2 if several else 1}

    @field_validator("labels")
    @classmethod
    def _once(cls, labels: list[Label]) -> list[Label]:
        if len({label.name for label in labels}) < len(labels):
            raise ValueError("two labels have the same name")
        return labels

    @classmethod
    def parse(cls, body: Any) -> Queue:
        """Raises `CallError` (400)."""
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise bad_request(f"Field {field!r}: {problem['msg']}.", field or None) from None


def _written(item: Mapping[str, Any]) -> str:
    return json.dumps(dict(item), ensure_ascii=False, default=str)


def readable(items: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The items that are not too long for a queue."""
    return [item for item in items if len(_written(item)) <= MAX_CONTENT]


class Reviews:
    """The queues of a state database. All methods block; those that name a queue raise `CallError` (404) where there is none."""

    def __init__(self, database: Engine) -> None:
        self._database = database
        create(database)

    def create(self, queue: Queue, by: str) -> dict[str, Any]:
        """Raises `CallError` (409) where there is one of this name."""
        row = {"name": queue.name, "endpoint": queue.endpoint, "spec": queue.model_dump_json(), "creator": by, "created": now()}
        try:
            with self._database.begin() as connection:
                connection.execute(insert(review_queues).values(row))
        except IntegrityError:
            problem = f"There is a review queue {queue.name!r} already; give this one another name."
            raise CallError(problem, status=409, code="RESOURCE_ALREADY_EXISTS") from None
        return self.get(queue.name)

    def queue(self, name: str) -> Queue:
        return Queue.model_validate_json(self._row(name)["spec"])

    def get(self, name: str) -> dict[str, Any]:
        """A queue with how far its review is: `items`, `done` (with reviews enough), and `labels_by` reviewer."""
        row = self._row(name)
        queue, given = Queue.model_validate_json(row["spec"]), self._labels(name)
        by = Counter(reviewer for said in given.values() for reviewer in said)
        done = sum(len(said) >= queue.reviews_per_item for said in given.values())
        counts = {"items": self._count(name), "done": done, "reviews_by": dict(by)}
        return {**queue.model_dump(), "creator": row["creator"], "created": row["created"], **counts}

    def list(self) -> list[dict[str, Any]]:
        with self._database.connect() as connection:
            names = connection.execute(select(review_queues.c.name).order_by(review_queues.c.created.desc())).scalars().all()
        return [self.get(name) for name in names]

    def drop(self, name: str) -> None:
        """Remove a queue with its items and labels."""
        self._row(name)
        with self._database.begin() as connection:
            connection.execute(delete(review_labels).where(review_labels.c.queue == name))
            connection.execute(delete(review_items).where(review_items.c.queue == name))
            connection.execute(delete(review_queues).where(review_queues.c.name == name))

    def add(self, name: str, items: Iterable[Mapping[str, Any]]) -> int:
        """Add items, each with a `question` or `inputs`; gives how many are new. What is there already is passed over.

        Raises `CallError` (400) for an item that is none, or for more than `MAX_ITEMS`.
        """
        self._row(name)
        with self._database.begin() as connection:
            here = review_items.c.queue == name
            known = set(connection.execute(select(review_items.c.id).where(here)).scalars())
            place, rows = len(known), []
            for number, item in enumerate(items):
                asked = item.get("question") if isinstance(item, Mapping) else None
                if not (isinstance(asked, str) and asked.strip()) and not (isinstance(item, Mapping) and item.get("inputs")):
                    raise bad_request(f"Item {number} has no 'question' and no 'inputs'.", "items")
                content = _written(item)
                if len(content) > MAX_CONTENT:
                    raise bad_request(f"Item {number} has more than {MAX_CONTENT} characters.", "items")
                identity = str(item.get("request_id") or item.get("id") or hashlib.sha256(content.encode()).hexdigest()[:32])[:64]
                if identity in known:
                    continue
                known.add(identity)
                rows.append({"queue": name, "id": identity, "position": place, "content": content, "added": now()})
                place += 1
            if place > MAX_ITEMS:
                raise bad_request(f"A queue holds {MAX_ITEMS} items at most; make another.", "items")
            if rows:
                connection.execute(insert(review_items), rows)
        return len(rows)

    def items(
        self, name: str, reviewer: str | None, *, state: str = "all", everything: bool = False, limit: int = 100, after: int = -1
    ) -> list[dict[str, Any]]:
        """Items in order, with the labels that `reviewer` may see: their own, and with `everything` all.

        `state`: `pending` (not yet reviewed by `reviewer`), `done` (reviewed by them) or `all`. `after`: a position.
        """
        given = self._labels(name)
        statement = select(review_items).where(review_items.c.queue == name, review_items.c.position > after)
        found: list[dict[str, Any]] = []
        with self._database.connect() as connection:
            for row in connection.execute(statement.order_by(review_items.c.position)).mappings():
                said = given.get(row["id"], {})
                if state != "all" and (reviewer in said) != (state == "done"):
                    continue
                shown = said if everything else {who: labels for who, labels in said.items() if who == reviewer}
                item = {"id": row["id"], "position": row["position"], "added": row["added"], "reviews": len(said)}
                found.append(item | {"content": json.loads(row["content"]), "labels": shown})
                if len(found) == limit:
                    break
        return found

    def next(self, name: str, reviewer: str) -> dict[str, Any] | None:
        """The item that needs this reviewer most: not yet seen by them, with the fewest reviews; None when all are done."""
        wanted = self.queue(name).reviews_per_item
        open_ = [item for item in self.items(name, reviewer, state="pending", limit=MAX_ITEMS) if item["reviews"] < wanted]
        return min(open_, key=lambda item: (item["reviews"], item["position"]), default=None)

    def label(self, name: str, item: str, reviewer: str, values: Mapping[str, Any], comment: str | None = None) -> None:
        """Keep what a reviewer says of an item; a second time replaces the first.

        Raises `CallError`: 404 for no such item, 400 for a value that does not fit or a required one that is missing.
        """
        queue = self.queue(name)
        schemas = {label.name: label for label in queue.labels}
        for key, value in values.items():
            if key not in schemas:
                raise bad_request(f"There is no label {key!r}; this queue has {', '.join(schemas)}.", key)
            if wanted := schemas[key].input.check(value):
                raise bad_request(f"Label {key!r} must be {wanted}.", key)
        missing = [label.name for label in queue.labels if label.required and label.name not in values]
        if missing:
            raise bad_request(f"Label {missing[0]!r} is missing.", missing[0])
        if comment is not None and len(comment) > 10_000:
            raise bad_request("The comment has more than 10000 characters.", "comment")
        keys = {"queue": name, "item": item, "reviewer": reviewer}
        rows = [
            {**keys, "name": key, "value": json.dumps(value), "comment": comment, "time": now()} for key, value in values.items()
        ]
        with self._database.begin() as connection:
            here = (review_items.c.queue == name) & (review_items.c.id == item)
            if connection.execute(select(review_items.c.id).where(here)).first() is None:
                raise not_found(f"There is no item {item!r} in the review queue {name!r}.")
            own = [review_labels.c[key] == value for key, value in keys.items()]
            connection.execute(delete(review_labels).where(*own))
            if rows:
                connection.execute(insert(review_labels), rows)

    def agreement(self, name: str) -> list[dict[str, Any]]:
        """For each label and pair of reviewers: items both judged, the share on which they agree, and Cohen's kappa."""
        queue, given = self.queue(name), self._labels(name)
        found = []
        for label in queue.labels:
            reviewers = sorted({who for said in given.values() for who, values in said.items() if label.name in values})
            for first, second in combinations(reviewers, 2):
                both = [
                    (said[first][label.name]["value"], said[second][label.name]["value"])
                    for said in given.values()
                    if label.name in said.get(first, {}) and label.name in said.get(second, {})
                ]
                pair = {"label": label.name, "reviewers": [first, second]}
                found.append(pair | kappa([a for a, _ in both], [b for _, b in both], ordered=label.input.type == "numeric"))
        return found

    def consensus(self, name: str) -> tuple[dict[str, dict[str, Any]], int]:
        """What most reviewers of each item say, by item and label; and the number of items and labels without a majority."""
        found: dict[str, dict[str, Any]] = defaultdict(dict)
        disputed = 0
        for item, said in self._labels(name).items():
            values: dict[str, list[str]] = defaultdict(list)
            for labels in said.values():
                for key, told in labels.items():
                    values[key].append(json.dumps(told["value"]))
            for key, each in values.items():
                (top, times), *others = Counter(each).most_common(2)
                if others and others[0][1] == times:
                    disputed += 1
                else:
                    found[item][key] = json.loads(top)
        return dict(found), disputed

    def dataset(self, name: str) -> tuple[list[dict[str, Any]], int]:
        """Dataset rows of the reviewed items, and how many labels were left out for want of a majority.

        Expectations become the row's; feedback stands in `labels`, beside the `answer` that it is on.
        """
        kinds = {label.name: label.type for label in self.queue(name).labels}
        agreed, disputed = self.consensus(name)
        rows = []
        for item in self.items(name, None, limit=MAX_ITEMS):
            labels = agreed.get(item["id"])
            if not labels:
                continue
            content = item["content"]
            row = {key: content[key] for key in ("question", "inputs", "answer", "request_id", "trace_id") if content.get(key)}
            row["id"] = str(content.get("row_id") or item["id"])
            row |= {EXPECTED[key]: value for key, value in labels.items() if kinds.get(key) == "expectation"}
            if row.get("unanswerable") and row.get("expected_facts"):
                row.pop("unanswerable")
            if feedback := {key: value for key, value in labels.items() if kinds.get(key) == "feedback"}:
                row["labels"] = feedback
            rows.append(row)
        return rows, disputed

    def _row(self, name: str) -> dict[str, Any]:
        with self._database.connect() as connection:
            found = connection.execute(select(review_queues).where(review_queues.c.name == name)).mappings().first()
        if found is None:
            raise not_found(f"There is no review queue {name!r}.")
        return dict(found)

    def _count(self, name: str) -> int:
        with self._database.connect() as connection:
            statement = select(func.count()).select_from(review_items).where(review_items.c.queue == name)
            return connection.execute(statement).scalar() or 0

    def _labels(self, name: str) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
        """What was said: by item, reviewer and label."""
        found: dict[str, dict[str, dict[str, dict[str, Any]]]] = defaultdict(lambda: defaultdict(dict))
        with self._database.connect() as connection:
            for row in connection.execute(select(review_labels).where(review_labels.c.queue == name)).mappings():
                told = {"value": json.loads(row["value"]), "comment": row["comment"], "time": row["time"]}
                found[row["item"]][row["reviewer"]][row["name"]] = told
        return {item: dict(said) for item, said in found.items()}


def kappa(first: Sequence[Any], second: Sequence[Any], *, ordered: bool = False) -> dict[str, Any]:
    """Two people's agreement: `n`, `agreement` (share) and Cohen's `kappa` (Educ. Psychol. Meas. 20, 1960).

    `ordered` weighs a disagreement by its square, for numbers. `kappa` is None where it is not defined: nothing
    judged by both, or both gave one and the same value throughout, which chance explains as well.
    """
    n = len(first)
    if n == 0:
        return {"n": 0, "agreement": None, "kappa": None}
    share = sum(a == b for a, b in zip(first, second, strict=True)) / n
    names = [[json.dumps(value, sort_keys=True) for value in side] for side in (first, second)]
    if len({*names[0], *names[1]}) < 2:
        return {"n": n, "agreement": share, "kappa": None}
    from sklearn.metrics import cohen_kappa_score

    if ordered:
        places = {value: place for place, value in enumerate(sorted({*first, *second}))}
        value = cohen_kappa_score([places[a] for a in first], [places[b] for b in second], weights="quadratic")
    else:
        value = cohen_kappa_score(*names)
    return {"n": n, "agreement": share, "kappa": float(value)}


def reviews(queue: Queue, principals: Iterable[str]) -> bool:
    """Whether one of the principals (`user:ann`, `group:team`) is a reviewer of the queue."""
    return not {re.sub(r"\s+", " ", each) for each in queue.reviewers}.isdisjoint(principals)
