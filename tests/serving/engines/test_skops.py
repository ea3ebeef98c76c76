"""scikit-learn models in skops' format load without PyTorch, and what needs its adaptor still finds it afterwards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


NAMED = """
import json, sys, zipfile
from pathlib import Path
from serving.engines import skops as lean
file = Path(sys.argv[1])
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.linear_model import Ridge
def names(*types):
    return [{"__module__": module, "__class__": name} for module, name in types]
schema = [
    *names(("sklearn.linear_model._ridge", "Ridge"), ("sklearn.linear_model._ridge", "_BaseRidge"), ("os", "system")),
    *names(("sklearn.pipeline", "Pipeline"), ("sklearn.utils.discovery", "Path"), ("sklearn.base", "BaseEstimator")),
    {"content": names(("sklearn.preprocessing._data", "StandardScaler"), ("sklearn.none", "None"))},
]
with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("schema.json", json.dumps(schema))
lean.import_lean(file)
from skops.io import _general, dumps, loads
names = ["sklearn.linear_model._ridge.Ridge", "sklearn.pipeline.Pipeline", "sklearn.preprocessing._data.StandardScaler"]
assert sorted(_general.SKLEARN_ESTIMATOR_TYPE_NAMES) == names, _general.SKLEARN_ESTIMATOR_TYPE_NAMES
assert "sklearn.neural_network" not in sys.modules
again = loads(dumps(make_pipeline(StandardScaler(), Ridge()).fit([[1], [2], [3]], [2, 4, 6])))
assert again.predict([[2]])[0] == 4
from sklearn.utils import all_estimators
assert len(all_estimators()) > 100
"""


def test_for_one_model_those_estimators_are_trusted_that_it_names(tmp_path: Path) -> None:
    pytest.importorskip("skops")
    command = [sys.executable, "-W", "ignore", "-c", NAMED, str(tmp_path / "model.skops")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr


def test_skops_is_imported_without_torch() -> None:
    pytest.importorskip("skops")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
