"""A run done in this process: however it ends, its last event and its state say how."""

from __future__ import annotations

import errno
import os
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune.job import Watch
    from finetune.runs import TrainingRun


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
