"""Do vLLM and the transformers engine write the same with an adapter that a recipe trained?

    python -m tests.bench.same_text --model FOLDER --vllm PYTHON [--texts docs] [--steps 150]

`--vllm` is the interpreter of an environment that has vLLM, such as `smalti engines install vllm` makes; on a processor its
build for processors. Trains a LoRA adapter (`cpt`), serves it with its base by both engines at fp32, and asks both, greedily.
Prints one JSON object: `prompts`, of which `same` (the adapter's texts) and `same_base` (the base model's), `differ` (where the
adapter's text is not the base's), and what differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

PROMPTS = ("# Fine", "The server", "Once upon a time", "| key | value |", "A run that", "Default deny. ", "```", "docs")
TOKENS = 64


def adapter(options: argparse.Namespace, folder: Path) -> Path:
    """The folder of a trained adapter."""
    from finetune.recipe import load_recipe
    from tests.finetune.tiny import trained

    given: dict[str, Any] = {"task": "cpt", "name": "same", "base_model": str(options.model.resolve()), "threads": 1}
    given |= {"data": {"train": str(options.texts.resolve())}, "learning_rate": 3e-3, "context_length": 128}
    return trained(load_recipe(given | {"training_duration": f"{options.steps}ba"}), folder).folder / "model"


async def said(model: Any, name: str) -> list[str]:
    """What an engine goes on with after each prompt."""
    from governance.call import Call

    found = []
    for prompt in PROMPTS:
        given = {"input": [{"type": "message", "role": "user", "content": prompt}], "temperature": 0, "raw": True}
        call = Call(name, "chat", given | {"max_output_tokens": TOKENS}, stream=True)
        events = [event async for event in model.answer(call, name)]
        parts = [part for item in events[-1].data["response"]["output"] for part in item["content"]]
        found.append("".join(part["text"] for part in parts))
    return found


async def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from serving.engines.local import LocalModel, Weights
    from serving.engines.vllm import VllmModel

    path = adapter(options, folder)
    base, adapters = str(options.model.resolve()), {"same": str(path)}
    rank = str(json.loads((path / "adapter_config.json").read_text())["r"])
    arguments = ["--enable-lora", "--max-lora-rank", rank, "--enforce-eager"]
    engines: list[Any] = [
        LocalModel(Weights(base), folder / "transformers.log", adapters=adapters, threads=1),
        VllmModel(
            base, folder / "vllm.log", python=options.vllm, dtype="float32", context=256, adapters=adapters, arguments=arguments
        ),
    ]
    texts = []
    for engine in engines:
        await engine.start()
        try:
            texts.append({name: await said(engine, name) for name in ("same", "")})
        finally:
            await engine.stop(0)
    one, other = texts

    def equal(name: str) -> int:
        return sum(a == b for a, b in zip(one[name], other[name], strict=True))

    apart = [list(pair) for pair in zip(one["same"], other["same"], strict=True) if pair[0] != pair[1]]
    moved = sum(a != b for a, b in zip(one["same"], one[""], strict=True))
    return {"prompts": len(PROMPTS), "same": equal("same"), "same_base": equal(""), "differ": moved, "apart": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vllm", type=Path, required=True)
    parser.add_argument("--texts", type=Path, default=Path("docs"))
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(asyncio.run(compare(options, Path(name)))))


if __name__ == "__main__":
    main()
