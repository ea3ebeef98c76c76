"""Rows of several requests as one array, and for which models an array does in place of a DataFrame."""

from __future__ import annotations

from typing import Any

_BY_NAME = {"ColumnTransformer", "FunctionTransformer", "TransformedTargetRegressor"}


def stacked(requests: list[list[list[Any]]]) -> Any:
    """Rows of numbers as one array."""
    import numpy as np

    rows = requests[0] if len(requests) == 1 else [row for data in requests for row in data]
    return np.array(rows, dtype=np.float64)


def joined(requests: list[dict[str, Any]]) -> dict[str, Any]:
    """Columns of several requests as one table's."""
    import numpy as np

    if len(requests) == 1:
        return requests[0]
    return {name: np.concatenate([columns[name] for columns in requests]) for name in requests[0]}


def takes_arrays(pyfunc: Any, names: list[str]) -> bool:
    """Whether a scikit-learn model sees nothing of a DataFrame of doubles but its values, so that an array does as well: it and
    all that it is made of are scikit-learn's own, nothing picks columns by name, and the order is the one it was fitted with."""
    model = pyfunc.get_raw_model()
    fitted = getattr(model, "feature_names_in_", None)
    if not hasattr(model, "get_params") or (fitted is not None and list(fitted) != names):
        return False
    parts = [model, *(value for value in model.get_params(deep=True).values())]
    for part in parts:
        if isinstance(part, list | tuple):
            continue  # steps: their estimators are parameters as well
        if callable(part) or hasattr(part, "fit"):
            kind = type(part)
            if not kind.__module__.startswith("sklearn.") or kind.__name__ in _BY_NAME:
                return False
    return True
