"""A recipe reads top to bottom; what is wrong in it is named by line, key and accepted values."""

from __future__ import annotations

from pathlib import Path

import pytest

import finetune
from finetune.recipe import RecipeError, find, load_recipe

TEXT = """\
task: classify
name: mine
data:
  train: data.jsonl
C: [1, 10]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(TEXT)
    return tmp_path / "r.yaml"


def test_overrides_win(path: Path) -> None:
    recipe = load_recipe(path, ["data.max_rows=6000", "C=[3]", "register_to=main.default.mine"])
    assert (recipe.data.max_rows, recipe.C, recipe.register_to) == (6000, (3.0,), "main.default.mine")
    assert load_recipe(path).C == (1, 10)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("C: [1, 10]", "C: [1, -1]", "r.yaml:5: C.1: Input should be greater than 0 (got -1)"),
        ("C: [1, 10]", "folds: 1", "r.yaml:5: folds: Input should be greater than or equal to 2"),
        (
            "  train: data",
            "  trian: data",
            "r.yaml:4: data.trian is not a key of it (did you mean train?); accepted: train, eval",
        ),
        ("name: mine", "nmae: mine", "nmae is not a key of it (did you mean name?); accepted: name, seed"),
        ("name: mine", "", "name is missing"),
        ("C: [1, 10]", "calibration: platt", "Input should be 'none' or 'temperature' (got 'platt')"),
        ("classify", "clasify", "r.yaml:1: task: 'clasify' is not one of classify"),
        ("name: mine", "name: [", "not YAML"),
        ("C: [1, 10]", "register_to: mine", "r.yaml:5: register_to"),
        ("C: [1, 10]", "name: other", "r.yaml:5: name stands there twice"),
        ("data.jsonl", "data.jsonl\n  train: other.jsonl", "r.yaml:5: train stands there twice"),
        ("C: [1, 10]", "C: 1", "r.yaml:5: C: Input should be a list"),
        ("name: mine", "name: &mine [*mine]", "name: Input should be a valid string"),
    ],
)
def test_errors_name_line_key_and_choices(path: Path, old: str, new: str, told: str) -> None:
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("folds", "write key=value"),
        ("folds=x", "override folds=x: folds"),
        ("C.x=1", "holds a value"),
        ("a.b=1", "override a.b=1: a is not a key of it"),
        ("C=[.inf]", "finite number"),
        ("seed=99999999999999999999", "seed: Input should be less than"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
    ],
)
def test_a_bad_override_is_named(path: Path, override: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert told in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing\.yaml: the recipe cannot be read"):
        load_recipe(tmp_path / "nothing.yaml")


def test_the_shipped_recipes_load() -> None:
    folder = Path(finetune.__file__ or "").parent / "recipes"
    names = {load_recipe(file).name for file in folder.glob("*.yaml")}
    assert "router" in names
    assert find(Path("finetune/recipes/router.yaml")).is_file()


def test_what_concerns_several_keys_is_told_plainly() -> None:
    given = {"task": "reader", "name": "x", "data": {"train": "a"}, "max_length": 40}
    assert load_recipe(given).model_dump()["stride"] == 10  # suits a shorter length by itself
    with pytest.raises(RecipeError, match=r"^recipe: stride must be a quarter of max_length at most\.$"):
        load_recipe(given | {"stride": 20})


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("lr=1e-3", "did you mean learning_rate?"),
        ("epochs=3", "did you mean training_duration?"),
        ("lora.r=8", "did you mean rank?"),
        ("training_duration=3", "it has no unit; write 3ep for epochs"),
        ("training_duration=0ep", "no duration"),
        ("learning_rate=.inf", "finite number"),
    ],
)
def test_what_other_tools_say_is_understood(override: str, told: str) -> None:
    given = {"task": "classify", "method": "lora", "name": "x", "data": {"train": "a"}}
    with pytest.raises(RecipeError) as caught:
        load_recipe(given, [override])
    assert told in str(caught.value)
