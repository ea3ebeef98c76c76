"""One of the processes that train together: `python -m finetune.rank FOLDER`, started by a launcher (`finetune.launch`)."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path


def train(folder: Path) -> int:
    """Do this process's part of a run. The first one tells how the run ended; the others end quietly with it."""
    from finetune import ranks
    from finetune.data import DataError
    from finetune.job import execute
    from finetune.loop import Canceled, TrainingError
    from finetune.perform import perform
    from finetune.recipe import RecipeError
    from finetune.runs import TrainingRun

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


def main() -> None:
    """End as `train` says.

    A process done early must not abort: an autograd thread that asks for the interpreter while that is taken down ends its
    process by a signal, and the launcher then ends the others. So the later ones, who have nothing left to write, leave without
    taking it down; the first one, whose exit hooks matter, is the last to end and ends like any other.
    """
    code = train(Path(sys.argv[1]))
    if int(os.environ.get("RANK", "0")):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
