"""What is said of a dataset that cannot be used."""

from __future__ import annotations

from pathlib import Path


class DatasetError(ValueError):
    """A dataset that cannot be used. `str()` is one line: where, what is wrong, what to do.

    `path`, `line` (1-based, None for the whole file), `key` (None for the whole row), `problem` and `fix` hold the parts.
    """

    def __init__(self, path: Path, problem: str, fix: str, *, line: int | None = None, key: str | None = None) -> None:
        where = f"{path}" + (f", line {line}" if line else "") + (f", key {key!r}" if key else "")
        super().__init__(f"{where}: {problem}; {fix}")
        self.path, self.line, self.key, self.problem, self.fix = path, line, key, problem, fix
