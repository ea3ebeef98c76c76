"""The process of one run: `python -m finetune.worker FOLDER`, started by `finetune.runs` alone."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

from filelock import Timeout

from finetune.runs import TrainingRun


def main(folder: Path) -> int:
    """Train what the folder's `run.json` says. However it ends, the last event and the state say how."""
    run = TrainingRun(folder)
    lock = run.lock()
    try:
        lock.acquire(timeout=10)
    except Timeout:
        return 1  # another process has this run
    run.set_state(status="RUNNING", pid=os.getpid())
    signal.signal(signal.SIGTERM, lambda *_: (run.folder / "cancel").touch())
    os.nice(5)  # answers come first
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from finetune.data import DataError
    from finetune.job import execute
    from finetune.loop import Canceled, TrainingError
    from finetune.recipe import RecipeError

    try:
        result = execute(run)
    except Canceled as end:
        return _end(run, "canceled", str(end))
    except (DataError, RecipeError, TrainingError, OSError) as error:
        traceback.print_exc()
        return _end(run, "failed", str(error))
    except BaseException as error:  # what is not foreseen is told as well; where it happened is in the log
        traceback.print_exc()
        return _end(run, "failed", f"{type(error).__name__}: {error} (see {run.folder / 'log.txt'})")
    run.emit("completed", **{key: value for key, value in result.items() if key in ("metrics", "baseline", "registered")})
    run.set_state(status="COMPLETED", result=result)
    return 0


def _end(run: TrainingRun, kind: str, message: str) -> int:
    run.emit(kind, message=message)
    run.set_state(status=kind.upper(), message=message)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
