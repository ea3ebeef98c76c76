"""scikit-learn models kept in skops' format, without what its import drags along."""

from __future__ import annotations

import importlib.util
import sys

_ADAPTOR = "sklearn.externals.array_api_compat.torch"


def import_lean() -> None:
    """Import skops where it is installed, but not PyTorch with it.

    To know what it may trust, skops has scikit-learn list its estimators, which imports every module that scikit-learn has. One
    of them, an adaptor that is needed for arrays of torch's alone, imports torch: 3 s of CPU and 260 MB in each model's process.
    That module is refused meanwhile, which the listing passes over, and can be imported afterwards.
    """
    if "torch" in sys.modules or "skops.io" in sys.modules or not importlib.util.find_spec("skops"):
        return
    sys.modules[_ADAPTOR] = None  # type: ignore[assignment] - Python's own way to refuse a module
    try:
        importlib.import_module("skops.io")
    finally:
        del sys.modules[_ADAPTOR]
