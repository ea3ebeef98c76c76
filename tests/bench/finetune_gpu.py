"""How many tokens a second training gives on a GPU, on mock data, by the loop that every run takes.

    python -m tests.bench.finetune_gpu [8b-lora] [8b-full] [1b-full] [--steps 15] [--tiny]

`8b-lora`: the architecture of Llama-3.1-8B with random weights, LoRA of rank 16 on all projections, bf16, sequences of 4096, two
at a time. `8b-full`: all of its weights, in bf16 with AdamW's averages (64 GB), with gradient checkpointing. `1b-full`: the
architecture of Llama-3.2-1B, all weights in fp32 under bf16, eight sequences at a time. Each case has a process of its own,
ended after three minutes; where cuDNN's attention or compiled layers fail, it is tried again without. Prints a JSON object a
case, and at the end a table: tokens a second and target, MFU with its convention, memory planned and measured. Without a GPU it
says so and ends with 2; `--tiny` does the same with a model of two layers on the CPU, whose figures say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
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
    # what a step does besides, once for each weight, takes a tenth of one of two sequences
    "1b-full": ("1b", 45_000, {"method": "full", "precision": "bf16", "batch_size": 8, "micro_batch_size": 8}),
}
"""Architecture, target in tokens a second on one H100, and keys of the recipe."""
WARM = 3
PATIENCE = 180
"""Seconds that a case may take."""


class Words:
    """All that the task asks of a tokenizer where its texts are tokens already."""

    pad_token_id, eos_token_id, bos_token_id = 0, 0, None


def measure(name: str, steps: int, *, tiny: bool, compile: bool = True) -> dict[str, Any]:
    """Train the case for some steps, on sequences of random tokens, each one text."""
    import torch

    from finetune import speed
    from finetune.loop import Loop
    from finetune.memory import memory_of
    from finetune.packing import Tokens
    from finetune.recipe import load_recipe
    from finetune.tasks.language import LanguageTask

    size, target, keys = CASES[name]
    device, length, rows = ("cpu", 64, 2) if tiny else ("cuda", 4096, keys.get("batch_size", 2))
    config = LLAMA | SIZES["tiny" if tiny else size]
    draw = torch.Generator().manual_seed(0)
    every = torch.randint(1, config["vocab_size"], (rows * (steps + WARM), length), generator=draw).tolist()
    texts = [Tokens(ids, ids) for ids in every]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        given = {"task": "cpt", "name": name, "base_model": folder, "data": {"train": "mock"}, "random_weights": True}
        given |= {"gradient_checkpointing": False} | keys
        given |= {"context_length": length, "batch_size": rows, "micro_batch_size": rows, "compile": compile and not tiny}
        recipe: Any = load_recipe(given | {"training_duration": f"{steps + WARM}ba"})

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


def apart(name: str, steps: int, *, tiny: bool) -> dict[str, Any]:
    """The case in a process of its own, which gives all memory back; where it fails, again with less that is particular."""
    less: tuple[list[str], ...] = ([],) if tiny else ([], ["--no-cudnn"], ["--no-cudnn", "--no-compile"])
    failed: list[str] = []
    for options in less:
        command = [sys.executable, "-m", "tests.bench.finetune_gpu", name, "--steps", str(steps), "--alone", *options]
        environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", **os.environ}
        try:
            done = subprocess.run(
                [*command, *(["--tiny"] if tiny else [])], capture_output=True, text=True, timeout=PATIENCE, env=environment
            )
        except subprocess.TimeoutExpired:
            failed.append(f"{' '.join(options) or 'all'}: more than {PATIENCE} s")
            break  # another way would take as long
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1]) | {"options": options} | ({"failed": failed} if failed else {})
        failed.append(f"{' '.join(options) or 'all'}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1][:300]}")
    return {"case": name, "target": CASES[name][1], "met": False, "failed": failed}


def table(rows: list[dict[str, Any]]) -> str:
    """The cases side by side, for people."""
    lines = [f"{'case':8}  {'tokens/s':>9}  {'target':>7}  {'':7}  {'MFU':>6}  {'step':>9}  {'GB':>6}  {'planned':>7}"]
    for row in rows:
        if "tokens_per_second" not in row:
            lines.append(f"{row['case']:8}  {'failed':>9}  {row['target']:7,}  {row['failed'][-1]}")
            continue
        mfu = "" if row["mfu"] is None else f"{row['mfu']:.1%}"
        used = "" if row["memory_measured"] is None else f"{row['memory_measured'] / 1e9:.1f}"
        line = f"{row['case']:8}  {row['tokens_per_second']:9,}  {row['target']:7,}  {'met' if row['met'] else 'not met':7}"
        lines.append(f"{line}  {mfu:>6}  {row['step_ms']:6.0f} ms  {used:>6}  {row['memory_planned'] / 1e9:7.1f}")
    convention = "MFU: operations of the convention (6N a token with all weights, 4N with adapters; attention's own not counted)"
    return "\n".join([*lines, f"{convention} over the GPU's dense bf16 peak."])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU, which only shows that all works")
    parser.add_argument("--alone", action="store_true", help="in this process")
    parser.add_argument("--no-cudnn", action="store_true", help="PyTorch's own choice of attention")
    parser.add_argument("--no-compile", action="store_true", help="layers as they are")
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"{', '.join(sorted(unknown))}: the cases are {', '.join(CASES)}")
    import torch

    if not options.tiny and not torch.cuda.is_available():
        print("SKIPPED: there is no GPU here, so nothing was measured (--tiny shows on the CPU that it works).", file=sys.stderr)
        return 2
    if options.no_cudnn:
        torch.backends.cuda.enable_cudnn_sdp(False)
    rows = []
    for name in options.cases or CASES:
        if options.alone:
            given = "tiny, on the CPU" if options.tiny else torch.cuda.get_device_name()
            found = measure(name, options.steps, tiny=options.tiny, compile=not options.no_compile)
            rows.append({"case": name, "device": given, **found})
        else:
            rows.append(apart(name, options.steps, tiny=options.tiny))
        print(json.dumps(rows[-1]), flush=True)
    if not options.alone:
        print(table(rows))
    return 0 if all("tokens_per_second" in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
