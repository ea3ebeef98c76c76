"""A plan counts what training then holds, and names changes that make a run fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune import plan as planning
from finetune.plan import Plan, plan
from finetune.recipe import RecipeError, load_recipe
from tests.bench.finetune import peak
from tests.finetune.tiny import bert, llama, reviews, trained


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    llama(folder / "llama", width=64)
    bert(folder / "bert")
    reviews(folder / "train.jsonl", 64, 1)
    (folder / "a.txt").write_text("The fox sees the dog. " * 300)
    return folder


def cpt(made: Path, **changes: Any) -> Any:
    given = {
        "task": "cpt",
        "method": "full",
        "name": "x",
        "base_model": str(made / "llama"),
        "data": {"train": str(made / "a.txt")},
    }
    return load_recipe(given | {"context_length": 128, "batch_size": 8, "training_duration": "3ep", "threads": 1} | changes)


def test_gradients_of_what_is_used_twice_are_added_up_in_place(made: Path) -> None:
    from finetune.jobs import job_of
    from finetune.loop import Loop

    rows = [{"query": f"it was {i}", "positive": f"so {i} a good day"} for i in range(10)]
    (made / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = bert(made / "wide", vocab_size=5000)  # so that the gradients of the table of words are most of what a step holds
    given = {"task": "embed", "method": "full", "name": "x", "base_model": str(base), "threads": 1, "batch_size": 2}
    recipe: Any = load_recipe(given | {"data": {"train": str(made / "pairs.jsonl")}, "max_length": 32})
    planned = plan(recipe, measure=False)
    task = job_of(recipe).task(base, "cpu")
    loop = Loop(task, recipe, made / "checkpoints")
    task.model.train()
    loop._step([0, 1])
    held = planned.memory.weights + planned.memory.optimizer
    assert planned.memory.total == pytest.approx(held + peak(lambda: loop._step([0, 1])), rel=0.02)


@pytest.mark.parametrize("changes", [{}, {"method": "lora", "lora": {"rank": 4}}, {"micro_batch_size": 2}])
def test_memory_is_what_a_step_takes(made: Path, changes: dict[str, Any]) -> None:
    from finetune.jobs import job_of
    from finetune.loop import Loop

    recipe = cpt(made, **changes)
    planned = plan(recipe, measure=False)
    task = job_of(recipe).task(made / "llama", "cpu")
    loop = Loop(task, recipe, made / "checkpoints")
    task.model.train()
    batch = sorted(range(len(task.lengths)), key=lambda i: -task.lengths[i])[:8]
    loop._step(batch)  # AdamW makes its averages
    held = planned.memory.weights + planned.memory.optimizer
    assert planned.memory.total == pytest.approx(held + peak(lambda: loop._step(batch)), rel=0.1)
    parameters = list(task.model.parameters())
    assert planned.parameters == sum(p.numel() for p in parameters)
    assert planned.trained_parameters == sum(p.numel() for p in parameters if p.requires_grad)


def test_what_does_not_fit_is_told_with_what_would(made: Path) -> None:
    whole = plan(cpt(made, ema=0.9), measure=False)
    small = plan(cpt(made, ema=0.9), memory=whole.memory.total / 4e9)
    assert not small.fits
    assert small.seconds is None
    assert [knob.fits for knob in small.knobs] == [False] * (len(small.knobs) - 1) + [True]
    assert "micro_batch_size" in small.knobs[-1].change
    assert "does NOT fit" in small.summary()


def test_an_encoder_with_its_time_and_cost(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "ENOUGH", float("inf"))  # as many rounds on a slow machine
    given = {"task": "classify", "method": "full", "name": "x", "base_model": str(made / "bert"), "threads": 1}
    recipe = load_recipe(given | {"data": {"train": str(made / "train.jsonl")}, "max_length": 32, "batch_size": 8})
    made_plan: Plan = plan(recipe, price_per_hour=36.0)
    assert made_plan.steps == 24
    assert made_plan.seconds
    assert made_plan.seconds_between
    low, high = made_plan.seconds_between
    assert low <= made_plan.seconds <= high
    assert made_plan.evaluation_seconds is not None
    told = made_plan.seconds + made_plan.evaluation_seconds
    assert made_plan.cost == pytest.approx(told / 100, abs=0.0002)  # seconds are told rounded
    assert json.loads(json.dumps(made_plan.as_dict()))["fits"] is True
    frozen = plan(recipe.model_copy(update={"train_embeddings": False}), measure=False)
    assert frozen.memory.gradients < made_plan.memory.gradients


@pytest.mark.parametrize(
    "sizes",
    [
        [max(8, round(4000 / (1 + i))) for i in range(60)],  # most of the work is in a few
        [40] * 90 + [4000] * 10,
        [128] * 59 + [20],
        [300 + i % 7 for i in range(50)],
        [64],
    ],
)
def test_time_is_told_of_steps_of_all_sizes(sizes: list[int]) -> None:
    def seconds(size: int) -> float:  # some time whatever the size, and attention's, which grows with the square
        return 0.05 + 1e-4 * size + 1e-8 * size**2

    chosen, counts = planning.picked(sizes), [1 + i % 2 for i in range(len(sizes))]
    told = planning.expected(sizes, counts, chosen, [seconds(sizes[number]) for number in chosen])
    assert len(chosen) <= planning.MEASURED
    assert told == pytest.approx(sum(seconds(size) * count for size, count in zip(sizes, counts, strict=True)), rel=0.05)


def test_what_a_run_evaluates_and_writes_is_in_its_time(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.tasks.language import LanguageTask

    (made / "held.txt").write_text("The dog runs over the hills. " * 20)
    data = {"train": str(made / "a.txt"), "eval": str(made / "held.txt")}
    calls, clock = [0], [0.0]

    def evaluate(task: LanguageTask, real: Any = LanguageTask.evaluate) -> Any:
        calls[0] += 1
        return real(task)

    recipe: Any = cpt(made, data=data, training_duration="6ba", eval_interval="2ba", eval_prompts=["The fox"], sample_tokens=4)
    monkeypatch.setattr(LanguageTask, "evaluate", evaluate)
    monkeypatch.setattr(LanguageTask, "samples", lambda task: clock.append(clock.pop() + 10) or ["x"])
    planned = plan(recipe, clock=lambda: clock.append(clock.pop() + 1e-6) or clock[0])  # only what is written takes time
    calls[0] = 0
    run = trained(recipe, made / "home")
    assert planned.evaluation_seconds == pytest.approx(10 * calls[0], rel=0.01)
    assert run.state()["status"] == "COMPLETED"


def test_what_needs_no_plan(made: Path) -> None:
    with pytest.raises(RecipeError, match="takes seconds"):
        plan(load_recipe({"name": "x", "data": {"train": str(made / "train.jsonl")}}))
