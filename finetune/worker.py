"""The process of one run: `python -m finetune.worker FOLDER`, started by `finetune.runs` alone."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from filelock import Timeout

from finetune.perform import end_with, perform
from finetune.runs import START_PATIENCE, TrainingRun


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


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
