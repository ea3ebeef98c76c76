"""A model is handed the DataFrame that pandas itself would make of the columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from serving.engines import frames
from serving.engines.frames import Frames


def column(*values: Any) -> np.ndarray:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return made


@pytest.mark.parametrize(
    "columns",
    [
        {"text": column("a", "é", "")},
        {"text": column("a", None), "none": column(None, None), "bytes": column(b"a", b"")},
        {"n": np.array([1, 2]), "x": np.array([1.5, np.nan]), "b": np.array([True, False]), "t": column("a", "b")},
        {"when": np.array(["2024-02-29", "NaT"], dtype="datetime64[ns]")},
        {"text": column()},
        {},
    ],
)
def test_columns(columns: dict[str, np.ndarray]) -> None:
    pd.testing.assert_frame_equal(Frames().of_columns(columns), pd.DataFrame(columns))


def test_rows() -> None:
    matrix = np.array([[1.0, 2.0], [3.0, np.nan]])
    pd.testing.assert_frame_equal(Frames().of_rows(matrix, ["a", "b"]), pd.DataFrame(matrix, columns=["a", "b"]))


def test_what_a_model_does_to_its_frame_is_not_seen_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_HEADERS", 2)
    made = Frames()
    for name in ("a", "b", "c", "a"):
        first = made.of_columns({name: np.array([1.0])})
        first.columns.name = "mine"
        first["new"] = 2.0
        again = made.of_columns({name: np.array([1.0])})
        assert (list(again.columns), again.columns.name) == ([name], None)
