"""Do adapters lower the held-out loss as much as training all weights does?

    python -m tests.bench.adapters --model FOLDER [--texts docs] [--steps 300] [--rank 64] [--targets LAYERS]

Continued pre-training (`cpt`) of a small language model on the Markdown of a folder, two of five files held out, by `full` and by
`lora`, each with the best of three learning rates on half of the held-out files; what is told is measured on the other half.
Prints one JSON object: losses before and after, by how much each method lowered it, and `ratio`, LoRA's share of full's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

RATES = {"full": (3e-3, 1e-3, 3e-4), "lora": (2e-2, 1e-2, 3e-3)}


def trained(base: Path, folder: Path, method: str, rate: float, options: argparse.Namespace) -> dict[str, float]:
    """Held-out losses of a run: `before`, `after` (to choose by) and `told`."""
    import torch

    from finetune.jobs import job_of
    from finetune.loop import Loop
    from finetune.recipe import load_recipe
    from finetune.schema import LanguageRecipe

    given: dict[str, Any] = {"task": "cpt", "name": "adapters", "base_model": str(base), "method": method, "threads": 1}
    given |= {
        "data": {"train": str(folder / "train"), "eval": str(folder / "choose")},
        "learning_rate": rate,
        "schedule": "cosine",
    }
    lora = {"rank": options.rank} | ({"targets": options.targets.split(",")} if options.targets else {})
    given |= {"context_length": 256, "batch_size": 8, "training_duration": f"{options.steps}ba", "lora": lora}
    recipe = load_recipe(given)
    assert isinstance(recipe, LanguageRecipe)
    torch.manual_seed(0)
    job = job_of(recipe)
    task = job.task(base, "cpu")
    with tempfile.TemporaryDirectory() as name:
        Loop(task, recipe, Path(name)).run()
    after = task.evaluate()["loss"]
    judge = job_of(recipe.model_copy(update={"data": recipe.data.model_copy(update={"eval": folder / "tell"})}))
    task._held_out = judge.task(base, "cpu")._held_out
    return {"rate": rate, "before": judge._before["loss"], "chosen_by": after, "after": task.evaluate()["loss"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--texts", type=Path, default=Path("docs"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--targets", help="layers with adapters, with commas; default: all linear ones but the head")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, file in enumerate(sorted(options.texts.rglob("*.md"))):
            part = folder / {3: "choose", 4: "tell"}.get(number % 5, "train")
            part.mkdir(exist_ok=True)
            (part / f"{number}.md").write_text(file.read_text(encoding="utf-8"))
        told: dict[str, Any] = {}
        for method, rates in RATES.items():
            runs = [trained(options.model, folder, method, rate, options) for rate in rates]
            told[method] = min(runs, key=lambda run: run["chosen_by"])
        lowered = {method: run["before"] - run["after"] for method, run in told.items()}
    print(json.dumps({**told, "lowered": lowered, "ratio": round(lowered["lora"] / lowered["full"], 3)}))


if __name__ == "__main__":
    main()
