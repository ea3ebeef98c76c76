"""Tables of labelled rows: CSV, Parquet or JSON lines, read, checked, and turned into numbers."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data import DataError, Problem, Spellings

if TYPE_CHECKING:
    from finetune.schema import TableRecipe

Frame = Any
"""A `pandas.DataFrame`, whose stubs are no help."""
_SEPARATED = (".csv", ".tsv")
KINDS = 40
"""Different values up to which a column of strings is one of kinds; those that are rare count as one."""


def read(path: Path, data: TableRecipe) -> tuple[Frame, list[Problem]]:
    """The rows of a file, by line, with warnings.

    Raises
    ------
    DataError: with every problem found.
    """
    problems: list[Problem] = []
    table = scan(path, data, problems)
    if any(problem.severity == "error" for problem in problems):
        raise DataError(problems)
    return table, problems


def scan(path: Path, data: TableRecipe, problems: list[Problem]) -> Frame:
    """The rows that can be used, the line (from 1) as their index; what is wrong with the others goes to `problems`."""
    import pandas as pd

    def tell(code: str, line: int | None, column: str | None, message: str, fix: str, severity: Any = "error") -> None:
        problems.append(Problem(code, str(path), line, column, message, fix, severity))

    table: Any
    between = ","
    try:
        if path.suffix == ".parquet":
            table, first = pd.read_parquet(path), 1
        elif path.suffix in _SEPARATED:
            between = _separator(path, data)
            table, first = pd.read_csv(path, sep=between), 2
        else:
            table, first = pd.read_json(path, lines=True), 1
    except (OSError, ValueError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())[:200]
        tell("unreadable", None, None, f"It cannot be read ({said}).", "Give a CSV, Parquet or JSON-lines file in UTF-8.")
        return pd.DataFrame()
    table.index = pd.RangeIndex(first, first + len(table))
    if path.suffix in _SEPARATED:
        content = path.read_bytes()
        if b"\0" in content:
            line = content[: content.index(b"\0")].count(b"\n") + 1
            tell("encoding", line, None, "The file has NUL bytes.", "Save it as text, in UTF-8.")
            return pd.DataFrame()
        header, lines = _lines(content, between)
        for name in sorted({name for name in header if header.count(name) > 1}):
            tell("duplicate_key", 1, name, "Two columns have this name.", "Give each a name of its own.")
        if len(lines) == len(table):  # texts with line breaks make rows of several lines
            table.index = pd.Index(lines)
    table = table.drop(columns=[name for name in data.ignore_columns if name in table])
    needed = [name for name in (data.label_column, data.text_column) if name]
    missing = [name for name in needed if name not in table]
    for name in missing:
        tell(
            "missing_key", None, name, "The column is missing.", f"Name it in the recipe; there are {', '.join(map(str, table))}."
        )
    if missing or not len(table):
        if not missing:
            tell("empty_file", None, None, "There are no rows.", "Give it rows.")
        return table.iloc[:0]
    for name in needed:
        empty = table[name].isna() | (table[name].astype(str).str.strip() == "")
        for line in table.index[empty]:
            tell(
                f"empty_{'label' if name == data.label_column else 'text'}",
                int(line),
                name,
                "It is empty.",
                "Fill it, or delete the row.",
            )
        table = table[~empty]
    for name in table.columns.difference(needed):
        if table[name].nunique(dropna=True) <= 1:
            tell("constant_column", None, str(name), "All its values are the same.", "Name it in data.ignore_columns.", "warning")
        elif _kind(table[name]) == "text" and name != data.text_column:
            fix = "Name it as data.text_column, or in data.ignore_columns."
            tell("free_text", None, str(name), "Nearly every value is another one; it is left out.", fix, "warning")
    spelled = Spellings(str(path), data.label_column, problems)
    for line, label in zip(table.index, table[data.label_column], strict=True):
        spelled.look(label, int(line))
    twice = table.astype(str).duplicated()
    for line in table.index[twice]:
        tell("duplicate_row", int(line), None, "It repeats an earlier row; it is left out.", "Delete one of the two.", "warning")
    table = table[~twice].assign(**{data.label_column: table[data.label_column].astype(str)})
    counts = table[data.label_column].value_counts()
    if len(counts) == 1:
        tell("one_class", None, data.label_column, f"Every row has the label {counts.index[0]!r}.", "Add rows of another label.")
    return table


def _separator(path: Path, data: TableRecipe) -> str:
    """What stands between a CSV's columns: that by which the header has the label, then the one that makes most columns."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline().rstrip("\n")

    def fits(separator: str) -> tuple[bool, int]:
        names = next(csv.reader([header], delimiter=separator), [])
        return data.label_column in names, len(names)

    return max(",;\t|", key=fits)


def _lines(content: bytes, separator: str) -> tuple[list[str], list[int]]:
    """A CSV's columns, and the line that each of its rows begins in."""
    reader = csv.reader(io.StringIO(content.decode("utf-8-sig", "replace"), newline=""), delimiter=separator)
    csv.field_size_limit(sys.maxsize)
    header = next(reader, [])
    found, at = [], reader.line_num + 1
    for row in reader:
        if row:
            found.append(at)
        at = reader.line_num + 1
    return header, found


def split_problems(train: Frame, train_file: Path, evaluation: Frame, eval_file: Path, data: TableRecipe) -> Iterator[Problem]:
    """Rows of the evaluation that are trained on, and labels and columns that only one of the two has."""
    for name in train.columns.difference(evaluation.columns):
        yield Problem("missing_key", str(eval_file), None, str(name), f"{train_file} has the column.", "Add it, or ignore it.")
    shared = [name for name in train if name in evaluation and name != data.label_column]
    seen = {values: line for line, *values_ in train[shared].astype(str).itertuples() for values in (tuple(values_),)}
    for line, *values in evaluation[shared].astype(str).itertuples():
        if (where := seen.get(tuple(values))) is not None:
            told = (f"The row is also in {train_file}:{where}.", f"Delete it from {train_file}.")
            yield Problem("leakage", str(eval_file), int(line), None, *told)
    for name in sorted(set(evaluation[data.label_column]) - set(train[data.label_column])):
        told = (f"No row of {train_file} has the label {name!r}.", "Add such rows to the training data, or delete it here.")
        yield Problem("unknown_label", str(eval_file), None, data.label_column, *told)


def texts_of(table: Frame, data: TableRecipe) -> list[str]:
    """The columns that hold strings."""
    return [name for name in table if name != data.label_column and table[name].dtype.kind == "O"]


def columns_of(table: Frame, data: TableRecipe) -> tuple[list[str], list[str]]:
    """Names of the columns that are numbers, and of those that are kinds."""
    rest = [name for name in table if name not in (data.label_column, data.text_column)]
    kinds = {name: _kind(table[name]) for name in rest if table[name].nunique(dropna=True) > 1}
    return [n for n in kinds if kinds[n] == "number"], [n for n in kinds if kinds[n] == "kind"]


def numbers_of(numbers: list[str], kinds: list[str]) -> Any:
    """What turns columns into a matrix: gaps in numbers become the median, kinds a column each."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    known = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=KINDS, sparse_output=False)
    parts = [("numbers", SimpleImputer(strategy="median"), numbers)] if numbers else []
    text = SimpleImputer(strategy="constant", fill_value="")
    return ColumnTransformer([*parts, *([("kinds", make_pipeline(text, known), kinds)] if kinds else [])])


def _kind(column: Any) -> str:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column):
        return "number"
    different = column.nunique(dropna=True)
    return "text" if different > KINDS and different > len(column) / 2 else "kind"
