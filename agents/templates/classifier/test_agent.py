from agents import Route, ScriptedModel
from agents.testing import answer

from agent import build


def classified(label, confidence):
    async def router(text):
        return Route(label, confidence, {label: confidence}, confidence >= 0.6)

    return router


def test_a_sure_classifier_decides():
    found = answer(build, "I was charged twice", documents={}, router=classified("billing", 0.95))
    assert found.text == "billing"
    assert found.steps[0]["attributes"]["by"] == "classifier"


def test_an_unsure_one_asks_the_model_or_a_person():
    unsure = classified("billing", 0.4)
    assert "a person" in answer(build, "hm", documents={}, router=unsure).text
    assert answer(build, "hm", documents={}, router=unsure, model=ScriptedModel(replies=["technical"])).text == "technical"
