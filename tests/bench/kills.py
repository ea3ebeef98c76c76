"""Does a run that is killed again and again end with the weights of one that was left alone?

`python -m tests.bench.kills [--kills 100] [--seed 0]` kills training processes with SIGKILL at random times; after every third
kill the newest checkpoint is torn, truncated or emptied as a failing disk leaves it. Prints one JSON object: `kills`, `resumed`
(attempts that went on), `torn`, and whether the last weights are `identical` bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path

from finetune.recipe import load_recipe
from finetune.runs import ACTIVE, Runs, TrainingRun
from finetune.schema import TrainedRecipe
from tests.finetune.tiny import bert, reviews


def begun(run: TrainingRun, attempts: int) -> bool:
    """Whether the run's process trains, in its so manieth attempt."""
    return sum(event["event"] == "started" for event in run.events()) >= attempts or run.status not in ACTIVE


def damage(newest: Path, how: int) -> None:
    """One of three things that a disk does to a folder that was being written."""
    tensors = newest / "tensors.safetensors"
    if not tensors.exists():  # torn before, and nothing newer was written since
        return
    content = tensors.read_bytes()
    if how == 0:
        tensors.write_bytes(content[: len(content) // 2])
    elif how == 1:
        tensors.write_bytes(content[:-8] + bytes(8))
    else:
        tensors.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = {"task": "classify", "method": "full", "name": "kills", "base_model": str(bert(folder / "base")), "threads": 1}
        given |= {"data": {"train": str(reviews(folder / "rows.jsonl", 320, 1))}, "batch_size": 16, "ema": 0.8, "max_length": 32}
        given |= {"training_duration": f"{60 * options.kills}ba", "checkpoint_interval": "7ba", "learning_rate": 1e-3}
        recipe = load_recipe(given)
        assert isinstance(recipe, TrainedRecipe)
        runs = Runs(folder / "runs")
        whole = runs.create(recipe, tracking_uri=f"sqlite:///{folder}/mlflow.db")
        whole.start()
        while whole.status in ACTIVE:
            time.sleep(0.2)
        run = runs.create(recipe, tracking_uri=f"sqlite:///{folder}/mlflow.db")
        kills = torn = resumed = 0
        run.start()
        while kills < options.kills:
            while not begun(run, resumed + 1):
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.5))
            if run.status not in ACTIVE:
                break
            os.kill(run.state()["pid"], signal.SIGKILL)
            kills += 1
            while run.alive():
                time.sleep(0.02)
            checkpoints = sorted((run.folder / "checkpoints").glob("step-*"))
            if kills % 3 == 0 and checkpoints:
                damage(checkpoints[-1], draw.randrange(3))
                torn += 1
            run.start()
            resumed += 1
        while run.status in ACTIVE:
            time.sleep(0.2)
        last = [sorted((each.folder / "checkpoints").glob("step-*"))[-1] / "tensors.safetensors" for each in (whole, run)]
        same = last[0].read_bytes() == last[1].read_bytes() and last[0].parent.name == last[1].parent.name
        told = {"kills": kills, "resumed": resumed, "torn": torn, "status": run.status, "identical": same}
        print(json.dumps(told | {"steps": run.state().get("steps")}))


if __name__ == "__main__":
    main()
