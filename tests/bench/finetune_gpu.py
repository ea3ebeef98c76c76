"""How many tokens a second training gives on a GPU, on mock data, by the loop that every run takes.

    python -m tests.bench.finetune_gpu [8b-lora] [8b-full] [1b-full] [--steps 20] [--tiny]

`8b-lora`: the architecture of Llama-3.1-8B with random weights, LoRA of rank 16 on all projections, bf16, sequences of 4096, two
at a time. `8b-full`: all of its weights, in bf16, with gradient checkpointing. `1b-full`: the architecture of Llama-3.2-1B, all
weights in fp32. Prints a JSON object a case: tokens a second and target, MFU with its convention, memory planned and measured.
Without a GPU it says so and ends with 2; `--tiny` does the same with a model of two layers on the CPU, whose figures say nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
"""What the two have in common, of their published `config.json`."""
SIZES: dict[str, dict[str, Any]] = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64, "tie_word_embeddings": True},
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "vocab_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "8b-lora": (
        "8b",
        14_000,
        {
            "method": "lora",
            "lora": {"rank": 16, "targets": PROJECTIONS},
            "precision": "bf16-true",
            "gradient_checkpointing": False,
        },
    ),
    "8b-full": ("8b", 7_000, {"method": "full", "precision": "bf16-true", "gradient_checkpointing": True}),
    "1b-full": ("1b", 45_000, {"method": "full", "precision": "bf16"}),
}
"""Architecture, target in tokens a second on one H100, and keys of the recipe."""
WARM = 3


class Words:
    """All that the task asks of a tokenizer where its texts are tokens already."""

    pad_token_id, eos_token_id, bos_token_id = 0, 0, None


def measure(name: str, steps: int, *, tiny: bool) -> dict[str, Any]:
    """Train the case for some steps, on sequences of random tokens, each one text."""
    import torch

    from finetune import speed
    from finetune.loop import Loop
    from finetune.memory import memory_of
    from finetune.packing import Tokens
    from finetune.recipe import load_recipe
    from finetune.tasks.language import LanguageTask

    size, target, keys = CASES[name]
    device, length, rows = ("cpu", 64, 2) if tiny else ("cuda", 4096, 2)
    config = LLAMA | SIZES["tiny" if tiny else size]
    draw = torch.Generator().manual_seed(0)
    every = torch.randint(1, config["vocab_size"], (rows * (steps + WARM), length), generator=draw).tolist()
    texts = [Tokens(ids, ids) for ids in every]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        given = {"task": "cpt", "name": name, "base_model": folder, "data": {"train": "mock"}, "random_weights": True}
        given |= {"context_length": length, "batch_size": rows, "micro_batch_size": rows, "compile": not tiny}
        given |= {"gradient_checkpointing": False}
        recipe: Any = load_recipe(given | {"training_duration": f"{steps + WARM}ba"} | keys)

        class Job:
            @staticmethod
            def shapes(recipe: Any, base: Path) -> Any:
                return LanguageTask(recipe, base, Words(), texts, [], "meta")

        planned, _ = memory_of(recipe, Job, Path(folder), device, checkpointing=recipe.gradient_checkpointing)
        began = time.perf_counter()
        task = LanguageTask(recipe, Path(folder), Words(), texts, [], device)
        loop = Loop(task, recipe, Path(folder), device=device)
        task.model.train()
        made = time.perf_counter() - began
        losses = [loop._step(range(rows * at, rows * (at + 1)))[0] for at in range(WARM)]
        warm = time.perf_counter() - began - made
        if not tiny:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        for at in range(WARM, WARM + steps):
            losses.append(loop._step(range(rows * at, rows * (at + 1)))[0])  # a step ends by reading its loss
        seconds = time.perf_counter() - began
    rate, factor = rows * length * steps / seconds, speed.operations(task.model, loop._trains)[1]
    promised = None if tiny else speed.peak(device)
    told: dict[str, Any] = {"tokens_per_second": round(rate), "target": target, "met": rate >= target and not tiny}
    told |= {"mfu": round(rate * loop.operations / promised, 4) if promised else None}
    told |= {"convention": f"{factor}N a token, N without looked-up word vectors, attention's own operations not counted"}
    told |= {"step_ms": round(1000 * seconds / steps, 1), "loss": [round(losses[0], 3), round(losses[-1], 3)]}
    told |= {"parameters": sum(p.numel() for p in task.model.parameters()), "trained": loop._trains}
    told |= {"memory_planned": planned.total, "memory_measured": None if tiny else torch.cuda.max_memory_allocated()}
    return told | {"building_seconds": round(made, 1), "warming_seconds": round(warm, 1)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU, which only shows that all works")
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"{', '.join(sorted(unknown))}: the cases are {', '.join(CASES)}")
    import torch

    if not options.tiny and not torch.cuda.is_available():
        print("SKIPPED: there is no GPU here, so nothing was measured (--tiny shows on the CPU that it works).", file=sys.stderr)
        return 2
    for name in options.cases or CASES:
        given = "tiny, on the CPU" if options.tiny else torch.cuda.get_device_name()
        print(json.dumps({"case": name, "device": given, **measure(name, options.steps, tiny=options.tiny)}), flush=True)
        if not options.tiny:
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
