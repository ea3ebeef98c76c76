"""scikit-learn models in skops' format load without PyTorch, and what needs its adaptor still finds it afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from serving.engines.skops import import_lean
import_lean()
import skops.io
assert "torch" not in sys.modules
from sklearn.linear_model import LinearRegression
again = skops.io.loads(skops.io.dumps(LinearRegression().fit([[1], [2]], [2, 4])))
assert abs(again.predict([[3]])[0] - 6) < 1e-9
import sklearn.externals.array_api_compat.torch
assert "torch" in sys.modules
import_lean()
"""


def test_skops_is_imported_without_torch() -> None:
    pytest.importorskip("skops")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
