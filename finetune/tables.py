"""Tables of labelled rows: CSV, Parquet or JSON lines, read, checked, and turned into numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.data import Spellings, spread
from finetune.problems import DataError, Problem
from finetune.rows import SEPARATED, CsvTable

if TYPE_CHECKING:
    from finetune.schema import AutoRecipe, TableRecipe

Tell = Callable[..., None]
Frame = Any
"""A `pandas.DataFrame`, whose stubs are no help."""
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

    if (table := _frame(path, data, problems)) is None:
        return pd.DataFrame()
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
    _columns(table, data, tell)
    spelled = Spellings(str(path), data.label_column, problems)
    for label, line in zip(*_firsts(table[data.label_column]), strict=True):
        spelled.look(label, int(line))
    twice = _alike(table).duplicated()
    if data.drops:
        for line in table.index[twice]:
            told = ("It repeats an earlier row; it is left out.", "Delete one of the two, or set data.repeated: keep.")
            tell("duplicate_row", int(line), None, *told, "warning")
        table = table[~twice]
    elif twice.any():
        message = f"{twice.sum()} of {len(table)} rows, the first of them this one, repeat an earlier row. They are kept."
        told = (message, "Set data.repeated: drop, if they are copies and no rows of their own.")
        tell("duplicate_row", int(table.index[twice][0]), None, *told, "warning")
    table = table.assign(**{data.label_column: table[data.label_column].astype(str)})
    labels = table[data.label_column]
    first = {str(label): int(line) for label, line in zip(*_firsts(labels), strict=True)}
    bad = any(problem.severity == "error" and problem.file == str(path) for problem in problems)
    counts = {str(label): int(count) for label, count in labels.value_counts().items()}
    if len(counts) > max(KINDS, len(table) / 2):
        told = f"There are {len(counts)} labels in {len(table)} rows: a number to be foretold, or a name, is no label."
        tell("too_many_labels", None, data.label_column, told, "Name another column, or make a few kinds of it.")
    else:
        problems.extend(spread(str(path), data.label_column, counts, first, bad))
    return table


def _firsts(column: Frame) -> tuple[Frame, Frame]:
    """The different values of a column, and the line that each is in first."""
    once = column[~column.duplicated()]
    return once, once.index


def _frame(path: Path, data: TableRecipe, problems: list[Problem]) -> Frame | None:
    """A file's rows, the line of each as their index; None where it cannot be read, which is told."""
    import pandas as pd

    lines: list[int] | None = None
    before = len(problems)
    try:
        if path.suffix == ".parquet":
            table, first = pd.read_parquet(path), 1
        elif path.suffix in SEPARATED:
            content = CsvTable(path, path.read_bytes(), problems, data.label_column)
            lines = [line for line, _ in content.rows()]
            if len(problems) > before:
                return None
            table, first = pd.read_csv(path, sep=content.separator, index_col=False), 2
        else:
            table, first = pd.read_json(path, lines=True), 1
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        fix = "Give a CSV, Parquet or JSON-lines file in UTF-8."
        problems.append(Problem("unreadable", str(path), None, None, f"It cannot be read ({said}).", fix))
        return None
    # texts with line breaks make rows of several lines
    table.index = pd.Index(lines) if lines is not None and len(lines) == len(table) else pd.RangeIndex(first, first + len(table))
    return table


def _columns(table: Frame, data: TableRecipe, tell: Tell) -> None:
    """Columns that say nothing, or too much, or are not what they seem."""
    import pandas as pd

    labels = table[data.label_column].astype(str)
    for name in table.columns.difference([data.label_column]):
        column, ignore = table[name], "Name it in data.ignore_columns."
        if name == data.text_column:
            continue
        if column.map(lambda value: isinstance(value, (list, dict))).any():
            tell("wrong_type", None, str(name), "It holds lists or objects.", f"Write a column for each value, or: {ignore}")
            continue
        different = column.nunique(dropna=True)
        if different <= 1:
            tell("constant_column", None, str(name), "All its values are the same.", ignore, "warning")
            continue
        if pd.api.types.is_numeric_dtype(column):
            for line in table.index[column.isin([float("inf"), float("-inf")])]:
                tell("wrong_type", int(line), str(name), "It is infinite.", "Write a number, or nothing where there is none.")
            if len(table) > 2 and column.diff().dropna().eq(1).all() and not column.isna().any():
                told = "It counts the rows, one up from each to the next."
                tell("id_column", None, str(name), told, ignore, "warning")
        elif (numbers := _numeric(column)).notna().sum() >= 0.9 * column.notna().sum():
            line = int(table.index[numbers.isna() & column.notna()][0])
            told = f"{table.at[line, name]!r} is no number, as nearly all others are: so the column is read as kinds."
            tell("mixed_column", line, str(name), told, "Write a number, or nothing where there is none.", "warning")
        elif _kind(column) == "text":
            fix = f"Name it as data.text_column, or: {ignore}"
            tell("free_text", None, str(name), "Nearly every value is another one; it is left out.", fix, "warning")
        pairs = {*zip(column, labels, strict=True)} if different <= KINDS and different < len(table) / 2 else ()
        if pairs and len(pairs) == different == labels.nunique():
            told = f"Each of its values goes with one label alone, as if it were {data.label_column!r} under another name."
            tell("label_copy", None, str(name), told, f"If it is not known before the label is: {ignore}", "warning")


def _alike(table: Frame) -> Frame:
    """A number for each row, the same for rows that are alike."""
    import pandas.util

    hash_pandas_object: Any = pandas.util.hash_pandas_object

    try:
        return hash_pandas_object(table, index=False)
    except TypeError:  # lists and objects
        return hash_pandas_object(table.astype(str), index=False)


def _numeric(column: Frame) -> Frame:
    import pandas as pd

    return pd.to_numeric(column, errors="coerce")


def split_problems(train: Frame, train_file: Path, evaluation: Frame, eval_file: Path, data: TableRecipe) -> Iterator[Problem]:
    """Rows of the evaluation that are trained on, and labels and columns that only one of the two has."""
    import pandas as pd

    for name in train.columns.difference(evaluation.columns):
        yield Problem("missing_key", str(eval_file), None, str(name), f"{train_file} has the column.", "Add it, or ignore it.")
    shared = [name for name in train if name in evaluation and name != data.label_column]
    for name in shared:
        here, there = (pd.api.types.is_numeric_dtype(each[name]) for each in (evaluation, train))
        if here != there and evaluation[name].notna().any() and train[name].notna().any():
            one, other = ("numbers", "kinds") if here else ("kinds", "numbers")
            told = (f"It holds {one}, and {other} in {train_file}.", "Write it alike in both.")
            yield Problem("wrong_type", str(eval_file), None, str(name), *told)
    seen = {values: line for line, *values_ in train[shared].astype(str).itertuples() for values in (tuple(values_),)}
    # where rows that are alike are rows of their own, some are in both
    alone = train[shared].astype(str).duplicated().sum() == 0 or data.drops
    for line, *values in evaluation[shared].astype(str).itertuples():
        if (where := seen.get(tuple(values))) is not None:
            told = (f"The row is also in {train_file}:{where}.", f"Delete it from {train_file}.")
            yield Problem("leakage", str(eval_file), int(line), None, *told, "error" if alone else "warning")
    for name in sorted(set(evaluation[data.label_column]) - set(train[data.label_column])):
        line = int(evaluation.index[evaluation[data.label_column] == name][0])
        told = (f"No row of {train_file} has the label {name!r}.", "Add such rows to the training data, or delete it here.")
        yield Problem("unknown_label", str(eval_file), line, data.label_column, *told)


def held_out_of(table: Frame, recipe: AutoRecipe, file: Path) -> tuple[Frame, Frame]:
    """Rows to train on and rows to judge on, each label in both; rows that are alike in all but the label lie on one side, unless
    most are.

    Raises
    ------
    DataError: there are too few rows.
    """
    from sklearn.model_selection import StratifiedGroupKFold, train_test_split

    labels = table[recipe.data.label_column]
    counts = labels.value_counts()
    if counts.min() < 2 or round(len(table) * min(recipe.held_out, 1 - recipe.held_out)) < len(counts):
        told = (
            f"{len(table)} rows, {counts.min()} of them with the label {counts.idxmin()!r}, are too few to hold out some of each."
        )
        fix = "Add rows, or name rows to judge on by data.eval."
        raise DataError([Problem("few_rows", str(file), None, recipe.data.label_column, told, fix)])
    groups = _alike(table.drop(columns=recipe.data.label_column)).factorize()[0]
    if len(table) > groups.max() + 1 > len(table) / 2:
        folds = StratifiedGroupKFold(max(2, round(1 / recipe.held_out)), shuffle=True, random_state=recipe.seed)
        for here, there in folds.split(table, labels, groups):
            if len(set(labels.iloc[here])) == len(set(labels.iloc[there])) == len(counts):
                return table.iloc[here], table.iloc[there]
    return tuple(train_test_split(table, test_size=recipe.held_out, random_state=recipe.seed, stratify=labels))  # type: ignore[return-value]


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
