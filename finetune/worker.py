"""The process of one run: `python -m finetune.worker FOLDER`, started by `finetune.runs` alone."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import Timeout

from finetune.runs import START_PATIENCE, TrainingRun

if TYPE_CHECKING:
    from finetune.job import Watch


def main(folder: Path) -> int:
    """Train what the folder's `run.json` says. However it ends, the last event and the state say how."""
    run = TrainingRun(folder)
    lock = run.lock()
    try:
        lock.acquire(timeout=START_PATIENCE / 2)  # its process before may still be leaving
    except Timeout:
        return 1  # another process has this run
    signal.signal(signal.SIGTERM, lambda *_: (run.folder / "cancel").touch())
    run.set_state(status="RUNNING", pid=os.getpid())
    if run.canceled():  # before anything heavy was begun
        end_with(run, "canceled", "canceled before it began")
        return 1
    os.nice(5)  # answers come first
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    launcher = run.spec["recipe"].get("launcher") or {}
    if launcher.get("kind", "process") != "process":
        from finetune.launch import launch

        return 0 if launch(run) == "COMPLETED" else 1
    return 0 if perform(run) == "COMPLETED" else 1


def perform(run: TrainingRun, watch: Watch | None = None) -> str:
    """Do a run in this process, which holds its lock; gives the status it ended with. `watch` is as in `finetune.job.execute`."""
    if run.canceled():  # before anything heavy is loaded
        return end_with(run, "canceled", "canceled before it began")
    from finetune.data import DataError
    from finetune.job import execute
    from finetune.loop import Canceled, TrainingError
    from finetune.recipe import RecipeError

    run.set_state(status="RUNNING", pid=os.getpid())
    try:
        result = execute(run, watch)
    except Canceled as end:
        return end_with(run, "canceled", str(end))
    except (DataError, RecipeError, TrainingError, OSError) as error:
        traceback.print_exc()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            again = f"`smalti finetune resume {run.id}` goes on from the last checkpoint."
            return end_with(run, "failed", f"No space is left for {run.folder}. Make some; {again}")
        return end_with(run, "failed", str(error))
    except KeyboardInterrupt:
        end_with(run, "canceled", "interrupted")
        raise
    except BaseException as error:  # what is not foreseen is told as well; where it happened is in the log
        traceback.print_exc()
        return end_with(run, "failed", f"{type(error).__name__}: {error} (see {run.folder / 'log.txt'})")
    run.emit("completed", **{key: value for key, value in result.items() if key in ("metrics", "baseline", "registered")})
    run.set_state(status="COMPLETED", result=result)
    return "COMPLETED"


def end_with(run: TrainingRun, kind: str, message: str) -> str:
    """Tell that a run ended without a model, and why."""
    run.emit(kind, message=message)
    run.set_state(status=kind.upper(), message=message)
    return kind.upper()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
