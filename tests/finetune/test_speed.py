"""What makes steps small or quick changes nothing of what they compute; weights in bf16 go where those in fp32 go."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import head, optimizer, speed
from finetune.jobs import job_of
from finetune.launch import check
from finetune.loop import Loop
from finetune.memory import memory_of
from finetune.optimizer import rounded, rounded_adamw
from finetune.plan import checkpoints, plan
from finetune.recipe import RecipeError, load_recipe
from finetune.schema import TrainedRecipe
from tests.finetune.tiny import bert, llama, reviews


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speed")
    llama(folder / "llama")
    bert(folder / "bert")
    reviews(folder / "reviews.jsonl", 32, 1)
    rows = [{"text": f"The fox sees {i} dogs."} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "long.txt").write_text("The fox sees the dog. " * 40)
    return folder


def cpt(made: Path, **more: Any) -> TrainedRecipe:
    given = {"task": "cpt", "method": "full", "name": "x", "base_model": str(made / "llama"), "threads": 1, "batch_size": 4}
    given |= {
        "data": {"train": str(made / "rows.jsonl")},
        "context_length": 64,
        "training_duration": "4ba",
        "learning_rate": 1e-3,
    }
    loaded = load_recipe(given | more)
    assert isinstance(loaded, TrainedRecipe)
    return loaded


def stepped(recipe: TrainedRecipe, folder: Path, **more: Any) -> tuple[list[float], dict[str, torch.Tensor], Loop]:
    """The losses of some steps, and the weights after them."""
    task = job_of(recipe).task(Path(recipe.base_model), "cpu")
    loop = Loop(task, recipe, folder, **more)
    task.model.train()
    losses = [loop._step(list(range(at, at + 4)) if at + 4 <= len(task.lengths) else [0, 1])[0] for at in (0, 2, 4, 6)]
    return losses, loop.weights(), loop


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own, as it traces
@pytest.mark.parametrize("data", ["rows.jsonl", "long.txt"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointed_and_compiled_layers_learn_the_same(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, method: str
) -> None:
    monkeypatch.setitem(speed.COMPILED, "backend", "eager")  # traced as ever, and run without a compiler
    more = {"method": method, "data": {"train": str(made / data)}, "lora": {"rank": 4}}
    losses, weights, _ = stepped(cpt(made, **more), tmp_path)
    for changes in ({"gradient_checkpointing": True}, {"compile": True}, {"gradient_checkpointing": True, "compile": True}):
        others, found, loop = stepped(cpt(made, **more, **changes), tmp_path)
        assert loop.checkpointing == ("gradient_checkpointing" in changes)
        assert others == pytest.approx(losses, rel=1e-5)
        assert found.keys() == weights.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-5)


def test_a_checkpointed_encoder_has_the_same_gradients(made: Path) -> None:
    given = {"task": "classify", "method": "full", "name": "x", "base_model": str(made / "bert"), "dropout": 0.2}
    recipe: Any = load_recipe(given | {"data": {"train": str(made / "reviews.jsonl")}, "max_length": 32})
    found = []
    for checkpointing in (False, True):
        task = job_of(recipe).task(made / "bert", "cpu")
        speed.prepare(task.model, recipe, checkpointing)
        task.model.train()
        torch.manual_seed(3)  # of dropout, which must be the same when a layer is computed again
        task.loss(range(8)).backward()
        found.append({name: p.grad for name, p in task.model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("precision", ["bf16", "bf16-true"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_bf16_learns_about_the_same(made: Path, tmp_path: Path, precision: str, method: str) -> None:
    losses, _, _ = stepped(cpt(made, method=method), tmp_path)
    others, weights, loop = stepped(cpt(made, method=method, precision=precision, eval_prompts=("The",)), tmp_path)
    assert loop.task.samples()[0].startswith("The")  # outside of autocast, as an evaluation is
    assert others == pytest.approx(losses, rel=0.02)
    pure = precision == "bf16-true" and method == "full"
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16 if pure else torch.float32}
    held = {p.dtype for p in loop.task.model.parameters() if not p.requires_grad}
    assert held == (set() if method == "full" else {torch.bfloat16 if precision == "bf16-true" else torch.float32})


def test_a_run_in_bf16_goes_on_with_the_same_bits(made: Path, tmp_path: Path) -> None:
    recipe = cpt(made, precision="bf16-true", checkpoint_interval="2ba", ema=0.5)
    job, ends = job_of(recipe), []
    for part in ("a", "b"):
        loop = Loop(job.task(made / "llama", "cpu"), recipe, tmp_path / part)
        if part == "b":
            (tmp_path / "b").mkdir()
            (tmp_path / "a" / "step-00000002").rename(tmp_path / "b" / "step-00000002")
        loop.run()
        ends.append((tmp_path / part / "step-00000004" / "tensors.safetensors").read_bytes())
    assert ends[0] == ends[1]


def test_small_steps_in_bf16_add_up() -> None:
    """A hundredth of the last digit at a time: rounding to the nearest would stand still."""
    torch.manual_seed(0)
    many = torch.full((4000,), 1.001)
    assert set(rounded(many.clone()).tolist()) == {1.0, 1.0078125}
    assert float(rounded(many.clone()).float().mean()) == pytest.approx(1.001, abs=2e-4)
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.ones(4000, dtype=dtype))
        options: Any = {"lr": 4e-5, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.0}
        optimizer = rounded_adamw()([weight], **options) if dtype == torch.bfloat16 else torch.optim.AdamW([weight], **options)
        for _ in range(200):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        ends.append(float(weight.detach().float().mean()))
    assert ends[0] == pytest.approx(1 - 200 * 4e-5, abs=1e-4)
    assert ends[1] == pytest.approx(ends[0], abs=3e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_compiler_fuses_is_what_is_computed_otherwise(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    logits, labels = torch.randn(7, 90, generator=torch.Generator().manual_seed(0)).to(dtype), torch.arange(7) * 11
    (loss, slope), (other, found) = head.slope(logits, labels), head.fusible_slope(logits, labels)
    assert float(loss) == pytest.approx(float(other), rel=1e-6)
    assert found.dtype == dtype
    torch.testing.assert_close(found, slope)

    monkeypatch.setitem(speed.COMPILED, "backend", "aot_eager")
    ends = []
    for compile in (False, True):
        monkeypatch.setattr(optimizer, "PART", 16)  # several parts, the last a shorter one
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 40).to(torch.bfloat16))
        options: Any = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}
        moving = rounded_adamw(compile)([weight], **options)
        torch.manual_seed(1)
        for step in range(4):
            moving.param_groups[0]["lr"] = 1e-2 / (step + 1)
            weight.grad = torch.linspace(2, -2, 40).to(torch.bfloat16)
            moving.step()
        ends.append(weight.detach().clone())
    torch.testing.assert_close(ends[0], ends[1])


def test_lengths_are_counted_once_however_many_rows_there_are(made: Path, tmp_path: Path) -> None:
    """A step that counted all rows anew would take longer with each row there is."""
    given = {"task": "classify", "method": "full", "name": "x", "base_model": str(made / "bert"), "batch_size": 4}
    labelled: Any = load_recipe(given | {"data": {"train": str(made / "reviews.jsonl")}, "max_length": 32})
    for recipe in (labelled, cpt(made)):
        task = job_of(recipe).task(made / ("llama" if recipe.task == "cpt" else "bert"), "cpu")
        assert task.lengths is task.lengths


def test_checkpointing_begins_where_memory_is_short(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, base = cpt(made, data={"train": str(made / "long.txt")}, batch_size=8), made / "llama"
    job = job_of(recipe)
    whole, less = (memory_of(recipe, job, base, "cpu", checkpointing=each)[0].total for each in (False, True))
    assert less < 0.8 * whole
    assert not checkpoints(recipe, job, base, "cpu")
    monkeypatch.setattr("finetune.plan._free", lambda: (whole + less) // 2)
    assert checkpoints(recipe, job, base, "cpu")
    made_plan = plan(recipe, measure=False)
    assert made_plan.fits
    assert made_plan.gradient_checkpointing
    assert "with gradient checkpointing" in made_plan.summary()
    refused = plan(recipe.model_copy(update={"gradient_checkpointing": False}), measure=False)
    assert [knob.change for knob in refused.knobs if knob.fits] == ["gradient_checkpointing=True"]

    # What the plan did not see coming: memory runs out, and the step is done again, by checkpointing, then in smaller parts.
    told: list[dict[str, Any]] = []
    task = job.task(base, "cpu")
    loop = Loop(task, recipe, tmp_path, lambda kind, **what: told.append(what) if kind == "memory" else None)
    task.model.train()
    real, calls = task.loss, []

    def short(examples: Any) -> torch.Tensor:
        calls.append(len(examples))
        if len(calls) <= 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return real(examples)

    monkeypatch.setattr(task, "loss", short)
    loop._step(range(8))
    assert told == [{"step": 1, "gradient_checkpointing": True}, {"step": 1, "micro_batch_size": 4}]
    assert calls == [8, 8, 4, 4]


def test_memory_of_a_step_that_failed_is_free_before_the_next(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = cpt(made, gradient_checkpointing=False)
    task = job_of(recipe).task(made / "llama", "cpu")
    loop = Loop(task, recipe, tmp_path)
    task.model.train()
    real, kept = task.loss, []

    class Held:
        """Lives as long as the graph of the pass."""

    class Full(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
            ctx.held = Held()
            kept.append(weakref.ref(ctx.held))
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, *outer: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def loss(examples: Any) -> torch.Tensor:
        assert all(each() is None for each in kept)
        full: Any = real(examples) if kept else Full.apply(real(examples))
        return full

    monkeypatch.setattr(task, "loss", loss)
    loop._step(range(4))
    assert loop.progress.micro_batch == 2


def test_a_layer_computed_again_attends_by_the_same_kernels(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's attention keeps other tensors than flash attention, and a second pass by the other one is refused."""
    recipe = cpt(made, data={"train": str(made / "long.txt")}, attention="sdpa", context_length=32)
    task = job_of(recipe).task(made / "llama", "cpu")
    task.model.train()
    assert speed.checkpoint_layers(task.model)
    real, orders = torch.nn.functional.scaled_dot_product_attention, []

    def attention(*given: Any, **more: Any) -> torch.Tensor:
        orders.append(torch._C._get_sdp_priority_order())
        return real(*given, **more)

    monkeypatch.setattr(speed, "_hopper", lambda device: True)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    usual = torch._C._get_sdp_priority_order()
    task.loss([0]).backward()
    assert len(orders) == 4  # two layers, each computed twice
    assert all(order == orders[0] != usual for order in orders)
    assert torch._C._get_sdp_priority_order() == usual


def test_saving_takes_a_tenth_of_the_time_unless_asked_for_more(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("finetune.loop.time.perf_counter", lambda: clock[0])

    def saved(**keys: Any) -> list[int]:
        recipe, found = cpt(made, training_duration="1000ba", **keys), []
        loop = Loop(job_of(recipe).task(made / "llama", "cpu"), recipe, tmp_path)

        def step(batch: Any) -> tuple[float, float]:
            clock[0] += 0.011
            return 1.0, 1.0

        def save() -> None:
            clock[0] += 0.5
            found.append(loop.progress.step)

        monkeypatch.setattr(loop, "_step", step)
        monkeypatch.setattr(loop, "_save", save)
        loop.run()
        return found

    assert saved() == [100, 600, 1000]  # 100 steps take 1.1 s, a checkpoint 0.5 s
    assert saved(checkpoint_interval="250ba") == [250, 500, 750, 1000]


def test_weights_drawn_anew_need_none_that_are_there(made: Path, tmp_path: Path) -> None:
    base = tmp_path / "architecture"
    llama(base)
    (base / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match=r"has no \*.safetensors"):
        check(cpt(made, base_model=str(base)))
    recipe = cpt(made, base_model=str(base), random_weights=True)
    check(recipe)
    losses, _, _ = stepped(recipe, tmp_path)
    assert losses[-1] < losses[0]
    with pytest.raises(RecipeError, match="take method: full"):
        cpt(made, random_weights=True, method="lora", register_to="a.b.c")


def test_operations_by_the_convention(made: Path) -> None:
    for method, factor in (("full", 6), ("lora", 4)):
        model = job_of(recipe := cpt(made, method=method)).task(made / "llama", "cpu").model
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        table = model.get_input_embeddings().weight.numel()
        counted = sum(p.numel() for p in model.parameters()) - table
        assert speed.operations(model, trained) == (factor * counted, factor)
        assert plan(recipe, measure=False).flops == factor * counted * plan(recipe, measure=False).tokens
    assert speed.peak("cpu") is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimizer": "adamw-8bit"}, "adamw-8bit needs a GPU"),
        ({"attention": "flash_attention_2"}, "flash_attention_2 needs a GPU and the package flash-attn"),
        ({"precision": "bf16-true", "method": "qlora"}, "with qlora the weights have four bits"),
    ],
)
def test_what_is_not_to_be_had_is_told(made: Path, changes: Any, says: str) -> None:
    if torch.cuda.is_available() and "method" not in changes:
        pytest.skip("there is a GPU")
    with pytest.raises(RecipeError, match=says):
        check(cpt(made, **changes))


@pytest.mark.gpu
def test_a_step_on_a_gpu(made: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU: what steps take there is not tried")
    losses, _, _ = stepped(cpt(made), tmp_path)
    for more in ({}, {"precision": "bf16"}, {"precision": "bf16-true"}, {"gradient_checkpointing": True}, {"compile": True}):
        recipe = cpt(made, **more)
        loop = Loop(job_of(recipe).task(made / "llama", "cuda"), recipe, tmp_path, device="cuda")
        loop.task.model.train()
        assert loop._step([0, 1, 2, 3])[0] == pytest.approx(losses[0], rel=0.02)


def test_the_benchmark_for_gpus_works_and_says_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.bench.finetune_gpu import CASES, main

    assert main(["--tiny", "--steps", "1", "--alone"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["case"] for each in told] == list(CASES)
    assert [each["convention"][:2] for each in told] == ["4N", "6N", "6N"]
    assert not any(each["met"] for each in told)
    assert main(["1b-full", "--tiny", "--steps", "1"]) == 0  # as on a GPU, in a process of its own
    line, heading, row, _ = capsys.readouterr().out.splitlines()
    assert json.loads(line)["case"] == row.split()[0] == "1b-full"
    assert heading.split()[:3] == ["case", "tokens/s", "target"]
    if not torch.cuda.is_available():
        assert main([]) == 2
        assert "SKIPPED" in capsys.readouterr().err
