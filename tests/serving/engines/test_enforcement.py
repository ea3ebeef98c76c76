"""The compiled check of rows against MLflow's own: what both take means the same, and both take what fits the signature."""

from __future__ import annotations

import warnings
from typing import Any

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.utils import _enforce_schema
from mlflow.types.schema import ColSpec, Schema

from serving.engines.arrays import joined, stacked
from serving.engines.rows import Refused, Table, reader

FINITE = st.floats(allow_nan=False, allow_infinity=False)
FITTING: dict[str, st.SearchStrategy[Any]] = {
    "double": st.one_of(FINITE, st.integers(-(2**40), 2**40), st.none()),
    "float": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "long": st.integers(-(2**63), 2**63 - 1),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "boolean": st.booleans(),
    "string": st.text(max_size=5),
}
STRANGE = st.one_of(st.none(), st.booleans(), st.integers(-(2**65), 2**65), FINITE, st.text(max_size=3), st.lists(st.integers()))


@st.composite
def requests(draw: st.DrawFn, *, strange: bool) -> tuple[Schema, dict[str, Any]]:
    kinds = draw(st.lists(st.sampled_from(list(FITTING)), min_size=1, max_size=4))
    names = [f"c{position}" for position in range(len(kinds))]
    cell = {name: FITTING[kind] for name, kind in zip(names, kinds, strict=True)}
    if strange:
        cell |= {draw(st.sampled_from(names)): STRANGE}
    rows = draw(st.lists(st.fixed_dictionaries(cell), min_size=1, max_size=4))
    order = draw(st.permutations(names))
    forms = {
        "dataframe_split": {"columns": order, "data": [[row[name] for name in order] for row in rows]},
        "dataframe_records": rows,
        "inputs": {name: [row[name] for row in rows] for name in order},
        "instances": rows,
    }
    form = draw(st.sampled_from(list(forms)))
    return Schema([ColSpec(kind, name) for kind, name in zip(kinds, names, strict=True)]), {form: forms[form]}


def ours(schema: Schema, payload: dict[str, Any]) -> pd.DataFrame:
    read = reader(ModelSignature(inputs=schema))[0]
    assert isinstance(read, Table)
    if (rows := read.rows(payload)) is not None:
        return pd.DataFrame(stacked([rows]), columns=read.names)
    return pd.DataFrame(joined([read(payload)[0]]))


def theirs(schema: Schema, payload: dict[str, Any]) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns when it is imported, and of columns that might be missing
        from mlflow.pyfunc.scoring_server import infer_and_parse_data

        found = _enforce_schema(infer_and_parse_data(payload, schema), schema)
    return pd.DataFrame(found)


def plain(table: pd.DataFrame) -> dict[str, tuple[str, list[Any]]]:
    return {
        str(name): (
            "text" if table[name].dtype.kind not in "biuf" else f"{table[name].dtype}",
            [None if pd.isna(value) else value for value in table[name].tolist()],
        )
        for name in table.columns
    }


@settings(max_examples=150)
@given(requests(strange=False))
def test_what_fits_is_read_as_mlflow_reads_it(request: tuple[Schema, dict[str, Any]]) -> None:
    schema, payload = request
    assert plain(ours(schema, payload)) == plain(theirs(schema, payload))


@settings(max_examples=150)
@given(requests(strange=True))
def test_what_does_not_fit_is_refused_or_read_as_mlflow_reads_it(request: tuple[Schema, dict[str, Any]]) -> None:
    schema, payload = request
    try:
        read = ours(schema, payload)
    except Refused:
        return
    try:
        expected = theirs(schema, payload)
    except (MlflowException, ValueError, TypeError, OverflowError):
        return
    given = plain(expected)
    for name, (kind, values) in plain(read).items():
        # a text that is missing stays so; MLflow makes it the text "None" where nothing else is in the column
        assert (kind, values) in (given[name], ("text", [None if value == "None" else value for value in given[name][1]]))
