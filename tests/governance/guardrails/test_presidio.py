"""Names and places, found by Presidio over a spaCy model that is made here."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import pytest

from governance.call import CallError
from governance.guardrails.pii import Finding
from governance.guardrails.presidio import Learned
from governance.guardrails.rules import Hold, Rules, mask

from ..conftest import House, answering
from .test_guard import ask, saying, texts
from .test_rules import in_pieces, through

installed = pytest.mark.skipif(
    importlib.util.find_spec("presidio_analyzer") is None,
    reason="Presidio is not installed: tier 2 was not tried (pip install 'smalti[presidio]')",
)


def test_what_was_learned_is_found_wherever_it_stands_and_held_until_the_end() -> None:
    rules = Learned(Rules("MASK"), "MASK", {"Anna Smith": "PERSON", "Anna": "PERSON", "Rome": "LOCATION"})
    text = "Anna  Smith of Rome, anna@example.org: Annabel and Rome."
    assert mask(text, rules.find(text)) == "[PERSON] of [LOCATION], [EMAIL]: Annabel and [LOCATION]."
    assert rules.find("Anna") == [Finding(0, 4, "PERSON")]
    for size in (1, 7, 40):
        assert through(Hold(rules), in_pieces(text, [size])) == mask(text, rules.find(text))
    assert Learned(Rules("MASK"), "MASK", {}).find("Anna") == []


@pytest.mark.anyio
async def test_without_it_nothing_passes_and_the_reason_says_what_to_install(house: House) -> None:
    options: dict[str, Any] = {"behavior": "MASK", "presidio": {"model": "no_such_model"}}
    with pytest.raises(ValueError, match=r"smalti\.yaml only"):
        house.policies.set("assistant", {"guardrails": {"input": {"pii": options}}})
    house.policies.declare({"assistant": {"guardrails": {"input": {"pii": options}}}})
    with pytest.raises(CallError, match="presidio") as caught:
        await ask(house, house.call(), answering)
    assert caught.value.status == 503


@pytest.mark.anyio
async def test_an_analyzer_that_hangs_lets_nothing_pass_and_is_asked_again_when_it_is_done(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, looked = threading.Event(), list[str]()

    class Analyzer:
        """What of Presidio's is used; it hangs on one text."""

        def get_supported_entities(self, language: str) -> list[str]:
            return ["PERSON"]

        def analyze(self, text: str, **_: Any) -> list[Any]:
            looked.append(text)
            if text == "hang":
                go_on.wait(20)
            return []

    monkeypatch.setattr("governance.guardrails.presidio._analyzer", lambda model, language: Analyzer())
    monkeypatch.setattr("governance.guardrails.guard.PATIENCE", 0.1)
    options = {"behavior": "MASK", "presidio": {"entities": ["PERSON"]}}
    house.policies.declare({"assistant": {"guardrails": {"input": {"pii": options}}}})
    for said in ("hang", "hello"):  # the second waits for the first, and in no thread
        call = house.call(payload={"input": said})
        with pytest.raises(CallError, match="could not decide, so nothing passes") as caught:
            await ask(house, call, answering)
        assert caught.value.status == 503
        assert house.row(call)["status_code"] == 503
    assert looked == ["hang"]
    go_on.set()
    monkeypatch.setattr("governance.guardrails.guard.PATIENCE", 10)
    assert (await ask(house, house.call(payload={"input": "hello"}), answering))[-1].type == "response.completed"
    assert looked == ["hang", "hello"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A spaCy model on disk that knows one name and one place."""
    import spacy

    made = spacy.blank("en")
    ruler: Any = made.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": "Anna Smith"}, {"label": "GPE", "pattern": "Zurich"}])
    made.to_disk(tmp_path / "model")
    return str(tmp_path / "model")


@installed
@pytest.mark.anyio
async def test_names_are_masked_on_the_way_in_and_out_off_the_event_loop(house: House, model: str) -> None:
    side = {"pii": {"behavior": "MASK", "presidio": {"model": model, "entities": ["PERSON", "LOCATION", "US_PASSPORT"]}}}
    house.policies.declare({"assistant": {"guardrails": {"input": side, "output": side}}})
    payload = {"input": "I am Anna Smith, anna@example.org", "instructions": "Anna Smith lives in Zurich."}
    call = house.call(payload=payload, usage_context={"who": "Anna Smith"})
    arguments = '{"name": "Anna Smith"}'
    loop_thread, ran_in = threading.get_ident(), []
    from governance.guardrails import presidio

    real = presidio.Presidio._learn

    def noted(self: Any, given: Any) -> Any:
        ran_in.append(threading.get_ident())
        return real(self, given)

    presidio.Presidio._learn = noted  # type: ignore[method-assign]
    try:
        events = await ask(house, call, saying(["Hello An", "na Sm", "ith in Zur", "ich"], arguments=arguments))
    finally:
        presidio.Presidio._learn = real  # type: ignore[method-assign]
    row = house.row(call)
    assert texts(events) == "Hello [PERSON] in [LOCATION]"
    assert [event.terminal for event in events] == [False] * (len(events) - 1) + [True]
    for told in (str(events), str(row)):
        assert "Anna Smith" not in told
        assert "Zurich" not in told
    assert "[PERSON]" in row["request"]
    assert {(each["where"], each["action"]) for each in row["guardrail_verdicts"]} == {("input", "MASK"), ("output", "MASK")}
    assert len(ran_in) == 2
    assert loop_thread not in ran_in


@installed
@pytest.mark.anyio
async def test_names_refuse_and_wrong_options_are_told(house: House, model: str) -> None:
    house.policies.declare(
        {"assistant": {"guardrails": {"output": {"pii": {"behavior": "BLOCK", "presidio": {"model": model}}}}}}
    )
    call = house.call()
    events = await ask(house, call, saying(["It is ", "Anna ", "Smith"]))
    assert (events[-1].type, texts(events)) == ("response.incomplete", "")
    assert "Anna" not in str(events)
    assert house.row(call)["guardrail_verdicts"][0]["reason"] == "PERSON"
    options = {"model": model, "entities": ["PERSONS"]}
    house.policies.declare({"assistant": {"guardrails": {"input": {"pii": {"behavior": "MASK", "presidio": options}}}}})
    with pytest.raises(CallError, match=r"PERSONS cannot be found; known:.*PERSON"):
        await ask(house, house.call(), answering)
