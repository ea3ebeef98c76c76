"""What is wrong with data: by file, line, column and fix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

SHOWN = 20
"""Problems a `DataError` spells out; it holds all."""
OF_A_KIND = 5
"""Findings of one kind that people are shown."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, where, and what to do. A warning does not keep a recipe from running."""

    code: str
    file: str
    line: int | None
    column: str | None
    message: str
    fix: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = self.file + (f":{self.line}" if self.line else "") + (f" column {self.column!r}" if self.column else "")
        return f"{place}: {self.message} [{self.code}] {self.fix}"


class DataError(Exception):
    """Data that cannot be trained on. `problems` holds every finding, warnings too."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        errors = [str(problem) for problem in problems if problem.severity == "error"]
        more = f"\n… and {len(errors) - SHOWN} more" if len(errors) > SHOWN else ""
        super().__init__("\n".join(errors[:SHOWN]) + more)


def spelled(problems: Sequence[Problem], counts: Mapping[tuple[str, str], int] | None = None) -> list[tuple[str, str]]:
    """Severity and line for people: errors before warnings, a few of each kind and how many more.

    Parameters
    ----------
    counts: how many there are by severity and code, where `problems` does not hold all.
    """
    kinds = counts or Counter((problem.severity, problem.code) for problem in problems)
    lines: list[tuple[str, str]] = []
    for severity, code in sorted(kinds):
        same = [problem for problem in problems if (problem.severity, problem.code) == (severity, code)]
        lines += [(severity, str(problem)) for problem in same[:OF_A_KIND]]
        if (more := kinds[severity, code] - len(same[:OF_A_KIND])) > 0:
            lines.append((severity, f"… and {more:,} more of [{code}]"))
    return lines


def warnings_of(problems: Sequence[Problem]) -> list[str]:
    """The warnings among them, as a run tells them."""
    return [line for severity, line in spelled(problems) if severity == "warning"]
