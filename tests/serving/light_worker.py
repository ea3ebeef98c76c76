"""The worker of a served model as it is, but for MLflow, whose import takes longer than a test of processes does.

`python -m tests.serving.light_worker` loads the code file of a model of `tests.serving.models.small` by itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

from serving.engines import rows, worker
from tests.serving.models import SMALL


class Light(worker.Model):
    """A model of one column of text."""

    def __init__(self, path: str) -> None:
        names: dict = {}
        exec(SMALL, names)
        model = names["_load_pyfunc"](str(Path(path) / "data"))
        word = SimpleNamespace(name="word", required=True, type=SimpleNamespace(name="string"))
        schema = SimpleNamespace(inputs=[word])
        self.pyfunc = SimpleNamespace(_predict_fn=model.predict)
        self.read, self.table = rows.Table(schema, [rows._KINDS["string"]]), True
        self.loader, self.streams, self.rowwise = "small_model", False, True
        self._params = self._arrays = False

    def _predict(self, data: dict, params: object) -> list[str]:
        return self.pyfunc._predict_fn(data["word"])


def warm() -> None:
    """There is nothing to import."""


def main(descriptor: int) -> None:
    setattr(worker, "Model", Light)  # noqa: B010 - what the worker's `main` makes
    worker.main(descriptor)


if __name__ == "__main__":
    main(int(sys.argv[1]))
