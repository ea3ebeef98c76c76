from agents import ScriptedModel
from agents.testing import answer

from agent import build

DOCUMENTS = {"handbook.md": "# Vacation\n\nEmployees get 30 days of paid vacation a year."}


def test_it_quotes_its_source():
    found = answer(build, "How many days of paid vacation do employees get?", documents=DOCUMENTS)
    assert "30 days" in found.text
    assert found.sources == ["handbook.md"]


def test_it_says_when_it_does_not_know():
    found = answer(build, "What is the capital of France?", documents=DOCUMENTS)
    assert found.state["abstained"]


def test_a_models_citations_are_checked():
    model = ScriptedModel(replies=["Employees get 30 days of paid vacation a year [1]. The moon is made of cheese [7]."])
    found = answer(build, "How many days of paid vacation do employees get?", model=model, documents=DOCUMENTS)
    assert "[1]" in found.text
    assert "[7]" not in found.text
