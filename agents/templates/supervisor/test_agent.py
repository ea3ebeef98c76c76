from agents import Route, ScriptedModel
from agents.testing import answer

from agent import SAYS, build

DOCUMENTS = {"handbook.md": "# Vacation\n\nEmployees get 30 days of paid vacation a year."}
QUESTION = "How many days of paid vacation do employees get?"


def routed(label, confident=True):
    async def router(text):
        return Route(label, 0.9 if confident else 0.3, {}, confident)

    return router


def test_each_label_has_its_agent():
    assert "30 days" in answer(build, QUESTION, documents=DOCUMENTS, router=routed("documents")).text
    for label, text in SAYS.items():
        assert answer(build, "hi", documents=DOCUMENTS, router=routed(label)).text == text


def test_an_unsure_router_falls_back_or_asks_the_model():
    unsure = routed("decline", confident=False)
    assert "30 days" in answer(build, QUESTION, documents=DOCUMENTS, router=unsure).text
    asked = answer(build, "hi", documents=DOCUMENTS, router=unsure, model=ScriptedModel(replies=["small_talk"]))
    assert asked.text == SAYS["small_talk"]
