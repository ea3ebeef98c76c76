"""scikit-learn models kept in skops' format, without what its import drags along."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ADAPTOR = "sklearn.externals.array_api_compat.torch"


def import_lean(file: Path | None = None) -> None:
    """Import skops where it is installed, but not PyTorch with it; with `file`, for a process that reads this model alone.

    To know what it may trust, skops has scikit-learn list its estimators, which imports every module that scikit-learn has. For
    one model it is told of those estimators alone that the file names: they are looked at as scikit-learn looks at all of them,
    and what is none of its public estimators is trusted no more than before.

    One of scikit-learn's modules, an adaptor that is needed for arrays of torch's alone, imports torch: 3 s of CPU and 260 MB in
    each model's process. That module is refused meanwhile, which the listing passes over, and can be imported afterwards.
    """
    if "torch" in sys.modules or "skops.io" in sys.modules or not importlib.util.find_spec("skops"):
        return
    import sklearn.utils

    listing = sklearn.utils.all_estimators
    if file is not None:
        sklearn.utils.all_estimators = lambda: list(_named(file))
    sys.modules[_ADAPTOR] = None  # type: ignore[assignment] - Python's own way to refuse a module
    try:
        importlib.import_module("skops.io")
    finally:
        del sys.modules[_ADAPTOR]
        sklearn.utils.all_estimators = listing


def _named(file: Path) -> Iterator[tuple[str, type]]:
    """Those of scikit-learn's public estimators that a model's file names; `sklearn.utils.all_estimators` has the rules."""
    with zipfile.ZipFile(file) as archive:
        schema = json.loads(archive.read("schema.json"))
    for module, name in sorted(set(_types(schema))):
        if not module.startswith("sklearn.") or name.startswith("_"):
            continue
        public = module.partition("._")[0]  # what a private module has is seen in the package that shows it
        try:
            found = getattr(importlib.import_module(public), name, None)
        except ImportError:
            continue
        if inspect.isclass(found) and found.__module__ == module and _estimator(found):
            yield name, found


def _estimator(kind: type) -> bool:
    from sklearn.base import BaseEstimator

    return issubclass(kind, BaseEstimator) and kind is not BaseEstimator and not inspect.isabstract(kind)


def _types(node: Any) -> Iterator[tuple[str, str]]:
    """Module and name of each type that a schema of skops' names."""
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            module, name = each.get("__module__"), each.get("__class__")
            if isinstance(module, str) and isinstance(name, str):
                yield module, name
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
