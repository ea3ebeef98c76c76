"""One of the processes that train together: `python -m finetune.rank FOLDER`, started by a launcher (`finetune.launch`)."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path


def train(folder: Path) -> int:
    """Do this process's part of a run. The first one tells how the run ended; the others end quietly with it."""
    from finetune import ranks
    from finetune.data import DataError
    from finetune.job import execute
    from finetune.loop import Canceled, TrainingError
    from finetune.recipe import RecipeError
    from finetune.runs import TrainingRun
    from finetune.worker import perform

    run = TrainingRun(folder)
    place = ranks.join()
    try:
        if not place.rank:
            perform(run)
        else:
            execute(run)
    except (Canceled, DataError, RecipeError, TrainingError) as end:
        print(f"process {place.rank}: {end}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        ranks.leave()
    return 0


if __name__ == "__main__":
    sys.exit(train(Path(sys.argv[1])))
