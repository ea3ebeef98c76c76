"""Models of each MLflow flavor answer in the formats they take, alone and in one batch."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.live import ROOT


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = Path(__file__).with_name("flavors.py")
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("models"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["sklearn", "proba", "xgboost", "lightgbm"])
def test_models_of_columns_mean_the_same_in_every_format(told: dict[str, Any], name: str) -> None:
    alone, together = told[name]["alone"], told[name]["together"]
    assert len(alone) == 5
    assert alone == [alone[0]] * 5
    assert [json.dumps(each) for each in together] == [json.dumps(each) for each in alone]
    expected = {"sklearn": 21.0, "xgboost": 22.56, "lightgbm": 22.995}
    if name in expected:
        assert alone[0] == pytest.approx([expected[name]], abs=0.01)
    else:  # the function that the model was logged with
        assert sum(alone[0][0]) == pytest.approx(1)


def test_an_array_does_only_where_nothing_looks_for_names(told: dict[str, Any]) -> None:
    assert told["proba"]["arrays"]
    assert not told["sklearn"]["arrays"]  # a ColumnTransformer picks columns by name


def test_tensors_and_their_shapes(told: dict[str, Any]) -> None:
    first, second, ragged, narrow = told["tensor"]["alone"]
    assert first == second == pytest.approx([21.0])
    assert (ragged["status"], "ragged" in ragged["message"]) == (400, True)
    assert (narrow["status"], "has shape (1, 1); the model takes (-1, 2)" in narrow["message"]) == (400, True)


def test_texts_of_transformers_and_sentence_transformers(told: dict[str, Any]) -> None:
    for answer in told["transformers"]["alone"]:
        assert [sorted(each) for each in answer] == [["label", "score"]] * 2
    vectors = told["sentence_transformers"]["alone"]
    assert [[len(vector) for vector in answer] for answer in vectors] == [[16, 16]] * 2
    assert vectors[0][0] != vectors[0][1]


def test_type_hints_are_the_signature(told: dict[str, Any]) -> None:
    first, second, wrong = told["typed"]["alone"]
    assert first == second == ["GOOD", "BAD"]
    assert wrong["status"] == 400


@pytest.mark.skipif(find_spec("langchain") is None, reason="langchain is not installed")
def test_a_langchain_runnable(told: dict[str, Any]) -> None:
    whole, *listed = told["langchain"]["alone"]
    assert whole == "good is a word"
    assert listed == [["good is a word"]] * 2


@pytest.mark.skipif(find_spec("langchain") is None, reason="langchain is not installed")
def test_a_chain_without_a_signature_names_the_key_that_is_missing(told: dict[str, Any]) -> None:
    one, several = told["prompt"]["alone"]
    assert (one["status"], one["param"]) == (400, "tone")
    assert one["message"] == "Row 0 lacks 'tone', which the model needs. The model takes tone, word. Sent: word."
    assert (several["status"], several["param"], several["message"][:18]) == (400, "word", "Row 1 lacks 'word'")
    whole, lacking = told["prompt"]["streamed"]
    assert whole == ["good in red"]
    assert (lacking["status"], lacking["param"]) == (400, "tone")


def test_a_model_streams_the_answer_to_one_row_and_is_given_its_parameters(told: dict[str, Any]) -> None:
    good, two, wrong = told["teller"]["streamed"]
    assert good == [{"given": {"word": "good"}, "params": {"loud": False}}, "and more"]
    assert (two["status"], two["message"]) == (400, "A model streams the answer to one row; the request has 2.")
    assert (wrong["status"], wrong["param"]) == (400, "word")
    given = [chunks[0]["given"] for chunks in told["free"]["streamed"]]
    assert given == [{"word": "good"}, "good", {"word": "good"}]
    (refused,) = told["sklearn"]["streamed"]
    assert (refused["status"], refused["param"]) == (400, "stream")
    assert "no predict_stream" in refused["message"]
