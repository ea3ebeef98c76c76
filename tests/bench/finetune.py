"""How long a training step takes beside a bare PyTorch loop, and how near a plan comes to what is then measured.

    python -m tests.bench.finetune [--model FOLDER] [--steps 30]

`--model` is a small causal language model; without one a Llama of 4 layers, 128 wide, is made. Prints one JSON object:
`step_ratio` (the median over pairs of steps, taken in turn), and of recipes of all kinds memory and seconds as planned and as
measured. Seconds are the processor's, as others may use it too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any


def texts(folder: Path) -> Path:
    """A text that is long enough for some dozen steps."""
    words = ("the", "fox", "sees", "a", "dog", "runs", "over", "hills", "while", "rain", "falls", "on", "old", "stones")
    lines = [" ".join(words[(i * 7 + j * (i % 5 + 1)) % len(words)] for j in range(12)) for i in range(2500)]
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text(".\n".join(lines))
    return folder / "texts"


def bare_step(model: Any, optimizer: Any, given: dict[str, Any], labels: Any) -> None:
    """What anyone writes by hand for the same step: forward, loss, backward, clip, AdamW."""
    import torch

    optimizer.zero_grad()
    logits = model(**given, attention_mask=None, use_cache=False).logits[:, :-1].float()
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    float(loss.detach())


def peak(work: Any) -> int:
    """Bytes of tensors that `work` had at once beyond those there were before, by PyTorch's own account."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        work()
    assert told.profiler is not None
    now = most = 0
    events = told.profiler.kineto_results.events()
    for event in sorted((each for each in events if each.name() == "[memory]"), key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def recipes(folder: Path, cpt: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of several tasks, each with data of its own: texts of all lengths, as they come."""
    from tests.finetune.tiny import FILLER, PLACES

    words = [" ".join(FILLER[(i * j) % len(FILLER)] for j in range(3 + i % 30)) for i in range(160)]
    rows = [
        {"text": " ".join(FILLER[(i * j) % len(FILLER)] for j in range(3 + i % 40)) + f" {i}", "label": "ab"[i % 2]}
        for i in range(320)
    ]
    pairs = [
        {"query": f"was it {i}", "positive": " ".join(PLACES[(i * j) % len(PLACES)] for j in range(4 + i % 30))}
        for i in range(160)
    ]
    asked = [{"question": "which is it", "context": f"{text} {i}", "answer": str(i)} for i, text in enumerate(words)]
    instruct = [{"prompt": f"{text[:50]} {i}?", "response": text[:60][::-1]} for i, text in enumerate(words)]
    chats = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]}
        for row in instruct
    ]
    preferred = [{"prompt": row["prompt"], "chosen": row["response"], "rejected": "no"} for row in instruct]
    every = {"rows": rows, "pairs": pairs, "asked": asked, "instruct": instruct, "chats": chats, "preferred": preferred}
    for name, given in every.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    encoder = {"method": "full", "name": "bench", "threads": 1, "training_duration": "1ep", "batch_size": 16, "max_length": 64}
    classify = encoder | {"task": "classify", "data": {"train": str(folder / "rows.jsonl")}}
    lora: dict[str, Any] = {"method": "lora", "lora": {"rank": 8}}

    def language(task: str, file: str, epochs: int = 2) -> dict[str, Any]:
        more = {"task": task, "data": {"train": str(folder / f"{file}.jsonl")}, "training_duration": f"{epochs}ep"}
        return cpt | lora | more

    return {
        "cpt full": cpt,
        "cpt lora": cpt | lora,
        "cpt dora": cpt | lora | {"method": "dora"},
        "cpt checkpointing": cpt | {"gradient_checkpointing": True, "micro_batch_size": 4},
        "cpt bf16-true": cpt | {"precision": "bf16-true"},
        "classify": classify,
        "classify lora": classify | {"method": "lora"},
        "embed": encoder | {"task": "embed", "data": {"train": str(folder / "pairs.jsonl")}},
        "embed dora": encoder | {"task": "embed", "method": "dora", "data": {"train": str(folder / "pairs.jsonl")}},
        "rerank": encoder | {"task": "rerank", "negatives": 1, "data": {"train": str(folder / "pairs.jsonl")}},
        "reader": encoder | {"task": "reader", "data": {"train": str(folder / "asked.jsonl")}},
        "sft-instruct": language("sft-instruct", "instruct"),
        "sft-chat": language("sft-chat", "chats"),
        "dpo": language("dpo", "preferred"),
    }


def compared(recipe: Any, folder: Path) -> dict[str, Any]:
    """Memory and seconds of a recipe as they are planned, and as they then are."""
    from finetune.base_model import base_of
    from finetune.jobs import job_of
    from finetune.loop import Loop
    from finetune.plan import plan

    planned = plan(recipe, clock=time.process_time)
    task = job_of(recipe).task(base_of(recipe), "cpu")
    loop = Loop(task, recipe, folder, checkpointing=planned.gradient_checkpointing)
    real, taken = loop._step, 0.0

    def step(batch: Any) -> Any:
        nonlocal taken
        began = time.process_time()
        found = real(batch)
        taken += time.process_time() - began
        return found

    loop._step = step
    loop.run()
    task.model.train()
    longest = sorted(range(len(task.lengths)), key=lambda i: -task.lengths[i])[: recipe.batch_size]
    loop.optimizer.zero_grad()
    # weights and AdamW's averages are there before the step
    measured = planned.memory.total - planned.memory.activations - planned.memory.gradients + peak(lambda: real(longest))
    memory = {"planned": planned.memory.total, "measured": measured, "off": round(planned.memory.total / measured - 1, 4)}
    seconds = {"planned": planned.seconds, "between": planned.seconds_between, "measured": round(taken, 2)}
    return {"memory": memory, "seconds": seconds | {"off": round((planned.seconds or 0) / taken - 1, 3)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    import torch

    from finetune.jobs import job_of
    from finetune.loop import Loop, epoch_batches
    from finetune.packing import tensors
    from finetune.recipe import load_recipe
    from finetune.schema import LanguageRecipe
    from tests.finetune.tiny import llama

    torch.set_num_threads(1)
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = options.model or llama(folder / "base", width=128, layers=4, template=True)
        given = {"task": "cpt", "method": "full", "name": "bench", "base_model": str(base), "data": {"train": str(texts(folder))}}
        given |= {"context_length": 128, "batch_size": 8, "threads": 1, "training_duration": f"{2 * options.steps}ba"}
        recipe = load_recipe(given)
        assert isinstance(recipe, LanguageRecipe)
        job = job_of(recipe)
        task = job.task(base, "cpu")
        task.model.train()
        loop = Loop(task, recipe, folder / "checkpoints")
        batches = epoch_batches(task.lengths, recipe.batch_size, 0, 0)
        other = job.task(base, "cpu").model.train()
        optimizer = torch.optim.AdamW(other.parameters(), lr=2e-5, fused=True)
        ratios = []
        for number in range(options.steps):
            batch = batches[number % len(batches)]
            began = time.perf_counter()
            loop._step(batch)
            middle = time.perf_counter()
            packs = tensors([task._packs[i] for i in batch], 0)
            labels = packs.pop("labels")
            bare_step(other, optimizer, packs, labels)
            ratios.append((middle - began) / (time.perf_counter() - middle))
        told["step_ratio"] = round(statistics.median(ratios[2:]), 3)
        for number, (name, keys) in enumerate(recipes(folder, given).items()):
            told[name] = compared(load_recipe(keys), folder / str(number))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
