"""Experiments, fine-tuning and evaluations in the console, over a real server."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import psutil
import pytest
from playwright.sync_api import expect

from evals.data import Prediction
from evals.run import evaluate
from tests.finetune.tiny import bert_unbuilt, reviews
from tests.live import wait_until
from tests.serving.ui.test_accessible import both
from tests.serving.ui.test_console import pictures
from tests.serving.ui.world import XSS
from tests.serving.upstream import KEY as UPSTREAM_KEY
from tests.serving.upstream import Upstream

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

EXPERIMENTS = "/api/2.0/smalti/experiments"


@pytest.fixture(scope="module")
def arms(live):
    """An endpoint of two entities under an experiment that the second wins."""
    upstream = Upstream()
    config = {"custom_provider_url": upstream.url, "bearer_token_auth": {"token_plaintext": UPSTREAM_KEY}}
    model = {"name": "echo", "provider": "custom", "task": "llm/v1/chat", "custom_provider_config": config}
    routes = [{"served_model_name": "old", "traffic_percentage": 100}, {"served_model_name": "new", "traffic_percentage": 0}]
    entities = [{"name": each, "external_model": model} for each in ("old", "new")]
    with live.client() as client:
        body = {"name": "quotes", "config": {"served_entities": entities, "traffic_config": {"routes": routes}}}
        client.post("/api/2.0/serving-endpoints", json=body).raise_for_status()
        at = "/api/2.0/serving-endpoints/quotes"
        wait_until(lambda: client.get(at).json()["state"] == {"ready": "READY", "config_update": "NOT_UPDATING"}, 60)
        shares = [{"served_entity_name": each, "traffic_percentage": 50} for each in ("old", "new")]
        asked = {"name": "kinder", "endpoint": "quotes", "arms": shares, "sticky": "request", "metric": "quality"}
        client.post(EXPERIMENTS, json=asked).raise_for_status()
        said = {"messages": [{"role": "user", "content": "hi"}]}

        def ask(number):
            answer = client.post("/serving-endpoints/quotes/invocations", json=said).raise_for_status()
            arm = answer.headers["served-model-name"]
            value = (number % 7) / 40 + (0.6 if arm == "new" else 0.2)
            told = {"request_id": answer.headers["x-request-id"], "metric": "quality", "value": value}
            client.post(f"{EXPERIMENTS}/kinder/events", json=told).raise_for_status()

        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):  # a look at the experiment after each is a point of its course
                list(pool.map(ask, range(30)))
                client.get(f"{EXPERIMENTS}/kinder").raise_for_status()
    yield SimpleNamespace(endpoint="quotes", name="kinder")
    upstream.close()


def test_an_experiment_says_who_wins_and_is_promoted_and_rolled_back(console, live, arms):
    page = console("/console/experiments")
    page.get_by_role("button", name="Open kinder").click()
    detail = page.locator(".detail")
    expect(detail.locator(".verdict")).to_contain_text("new is the best in quality")
    expect(detail.locator(".ratio")).to_contain_text("Sample-ratio check passed")
    expect(detail.locator(".grid").first.locator("tbody tr")).to_have_count(2)
    expect(detail.locator(".plot svg").first).to_be_visible()
    expect(detail.locator(".plot figcaption").first).to_have_text("quality, difference to old")
    expect(detail.locator(".grid").nth(1)).to_contain_text("better")
    expect(page).to_have_url(re.compile(r"\?name=kinder$"))
    pictures(page, "experiments")
    assert not (wrong := both(page, "experiments")), "\n".join(wrong)
    expect(detail.get_by_label("Give all traffic to")).to_have_value("new")
    detail.get_by_role("button", name="Promote").click()
    expect(detail.locator(".status").first).to_have_text("PROMOTED")
    with live.client() as client:
        routes = client.get("/api/2.0/serving-endpoints/quotes").json()["config"]["traffic_config"]["routes"]
        assert {each["served_entity_name"]: each["traffic_percentage"] for each in routes}["new"] == 100
        detail.get_by_role("button", name="Roll back").click()
        expect(detail.get_by_role("alertdialog")).to_contain_text("Give the traffic of quotes back")
        detail.get_by_role("alertdialog").get_by_role("button", name="Roll back").click()
        expect(detail.locator(".status").first).to_have_text("ROLLED_BACK")
        routes = client.get("/api/2.0/serving-endpoints/quotes").json()["config"]["traffic_config"]["routes"]
        assert {each["served_entity_name"]: each["traffic_percentage"] for each in routes}["old"] == 100


def test_an_experiment_is_begun_in_the_console(console, live, arms):
    page = console("/console/experiments")
    new = page.locator("#new-experiment")
    new.get_by_label("Name").fill("again")
    new.get_by_label("What is dealt").select_option("request")
    new.get_by_label("Decided by").fill("latency_ms")
    new.get_by_role("button", name="Begin").click()
    detail = page.locator(".detail")
    expect(detail.locator("h2").first).to_have_text("again")
    expect(detail.locator(".status").first).to_have_text("RUNNING")
    with live.client() as client:
        made = client.get(f"{EXPERIMENTS}/again").json()
        assert [arm["traffic_percentage"] for arm in made["arms"]] == [50, 50]
        client.post(f"{EXPERIMENTS}/again/rollback", json={}).raise_for_status()


def test_a_split_is_changed_in_place(console, live, arms):
    page = console("/console/endpoints?name=quotes")
    detail = page.locator(".detail")
    detail.get_by_label("old, %").fill("70")
    detail.get_by_label("new, %").fill("20")
    detail.get_by_role("button", name="Change the split").click()
    expect(page.get_by_role("alert")).to_contain_text("add up to 100")
    detail.get_by_label("new, %").fill("30")
    detail.get_by_role("button", name="Change the split").click()
    expect(detail.locator(".facts")).to_contain_text("70%")
    with live.client() as client:
        routes = client.get("/api/2.0/serving-endpoints/quotes").json()["config"]["traffic_config"]["routes"]
    assert [each["traffic_percentage"] for each in routes] == [70, 30]


def test_others_see_no_experiment_evaluation_or_run(console, live, arms):
    page = console("/console/experiments", key=live.told["alice"])
    expect(page.locator(".empty-state")).to_contain_text("No experiment on an endpoint you manage")
    expect(page.get_by_role("link", name="Evaluations")).to_have_count(0)
    page.goto(f"{live.url}/console/experiments?name=kinder")
    expect(page.get_by_role("alert")).to_be_visible()
    page.goto(f"{live.url}/console/evaluations")
    expect(page.locator(".console-body")).to_contain_text("for administrators")
    page.goto(f"{live.url}/console/evaluations/any/report")
    expect(page.locator("h1")).to_have_text("The report cannot be shown")
    page.goto(f"{live.url}/console/finetuning")
    expect(page.locator(".empty-state")).to_contain_text("No run of yours")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    bert_unbuilt(folder / "base")
    reviews(folder / "train.jsonl", 80, 1)
    reviews(folder / "eval.jsonl", 20, 2)
    return folder


@contextmanager
def held(live, name):
    """The process of a run stands still, from its first imports on: however slow the page is, the run does not end meanwhile."""

    def state():
        return next(iter((live.home / "finetune").glob(f"{name}-*/state.json")), None)

    wait_until(lambda: state() and "pid" in json.loads(state().read_text()))
    process = psutil.Process(json.loads(state().read_text())["pid"])
    process.suspend()
    try:
        yield state().parent
    finally:
        process.resume()


def test_a_run_is_checked_planned_begun_canceled_resumed_registered_and_served(console, live, rows):
    page = console("/console/finetuning")
    new = page.locator("#new-run")
    expect(page.locator(".empty-state")).to_contain_text("No run of yours yet")
    pictures(page, "finetuning-new")
    hostile = {"name": f"{XSS[1].replace('/', '')}.jsonl", "mimeType": "text/plain"}
    new.get_by_label("Rows to train on").set_input_files({**hostile, "buffer": (rows / "train.jsonl").read_bytes()})
    expect(new.locator(".handed").first).to_contain_text("onerror")  # as text
    new.get_by_label("Rows to judge it on").set_input_files(rows / "eval.jsonl")
    expect(new.locator(".handed").nth(1)).to_have_text("eval.jsonl")
    new.get_by_label("Name", exact=True).fill("film reviews")
    new.get_by_role("button", name="Check the data").click()
    expect(new.locator(".problem")).to_contain_text("name")  # no blanks in a name
    new.get_by_label("Name", exact=True).fill("films")
    new.get_by_label("Base model", exact=True).fill(str(rows / "base"))
    new.get_by_label("Training duration", exact=True).fill("10ep")
    new.get_by_label("Batch size", exact=True).fill("8")
    new.locator("summary").click()
    new.get_by_label("Threads", exact=True).fill("1")
    new.get_by_label("Max length", exact=True).fill("32")
    new.get_by_label("Log every", exact=True).fill("1")
    new.get_by_label("Eval interval", exact=True).fill("1ep")
    new.get_by_role("button", name="Check the data").click()
    expect(new.locator(".verdict")).to_contain_text("100 rows")
    new.get_by_role("button", name="Estimate").click()
    expect(new.locator(".verdict")).to_contain_text("It fits", timeout=90_000)
    expect(new.locator(".facts")).to_contain_text("100 steps")
    pictures(page, "finetuning-plan")
    new.get_by_role("button", name="Begin").click()
    detail = page.locator(".detail").first
    expect(detail.locator("h2").first).to_have_text("films", timeout=30_000)
    detail.get_by_role("button", name="Cancel the run").click()  # before its process has come to the first step
    asks = detail.get_by_role("alertdialog")
    expect(asks).to_be_visible()
    with held(live, "films") as folder:
        expect(detail.locator(".section-head .status").first).to_have_text("RUNNING", timeout=60_000)
        expect(asks).to_be_visible()  # what goes on there does not take the question away
        asks.get_by_role("button", name="Cancel the run").click()
        wait_until((folder / "cancel").exists)
    expect(detail.locator(".section-head .status").first).to_have_text("CANCELED", timeout=60_000)
    listed = page.locator(".grid", has_text="Begun (UTC)").locator("tbody tr").first
    expect(listed).to_contain_text("canceled ")  # the list says why
    detail.get_by_role("button", name="Resume").click()
    detail.get_by_role("alertdialog").get_by_role("button", name="Resume").click()
    expect(detail.locator(".section-head .status").first).to_have_text("COMPLETED", timeout=120_000)
    expect(detail).to_contain_text("Step 100 of 100")
    expect(detail.get_by_role("link", name="Run in MLflow")).to_have_count(0)  # it is off here
    expect(detail.locator(".plot figcaption").first).to_have_text("Loss")
    beside = detail.locator(".grid").first
    expect(beside).to_contain_text("macro_recall")
    expect(beside.locator("th").nth(2)).not_to_be_empty()
    pictures(page, "finetuning")
    assert not (wrong := both(page, "finetuning")), "\n".join(wrong)
    page.reload()
    expect(detail.locator("h2").first).to_have_text("films")
    expect(page).to_have_url(re.compile(r"\?run=films-"))
    expect(detail.get_by_label("As model")).to_have_value("main.default.films")  # the recipe did not say so
    detail.get_by_role("button", name="Register").click()
    expect(detail.locator(".facts")).to_contain_text("main.default.films version 1", timeout=60_000)
    detail.get_by_label("As endpoint").fill("film-reviews")
    detail.get_by_role("button", name="Serve").click()
    expect(page.get_by_role("heading", name="film-reviews")).to_be_visible(timeout=30_000)
    expect(page).to_have_url(re.compile(r"/console/endpoints\?name=film-reviews$"))


@pytest.fixture(scope="module")
def evaluations(live, tmp_path_factory):
    """Two evaluations of one dataset, the second better; and what they asked about is hostile."""
    folder = tmp_path_factory.mktemp("evals")
    data = folder / XSS[1] / "questions.jsonl"
    data.parent.mkdir()
    questions = [f"Question {i} {XSS[i % len(XSS)]}" for i in range(24)]
    data.write_text("".join(json.dumps({"question": q, "expected_facts": [f"fact {i}"]}) + "\n" for i, q in enumerate(questions)))

    def predict(good):
        async def answer(question):
            number = questions.index(question)
            said = f"fact {number}" if number % 8 < good else f"I say {XSS[number % len(XSS)]}"
            return Prediction(text=said, latency_ms=20.0 + number)

        return answer

    def made(good):
        given = {"tracking_uri": None, "folder": live.home / "evals", "progress": False, "reuse": False}
        return asyncio.run(evaluate("assistant", data, predict(good), **given)).journal.stem

    with ThreadPoolExecutor(1) as apart:  # from the loop that drives the browser
        return [apart.submit(made, good).result() for good in (2, 7)]


def test_an_evaluation_shows_what_went_wrong_and_is_compared(console, live, evaluations):
    page = console("/console/evaluations")
    before, after = evaluations
    page.get_by_role("button", name=f"Open {after}").click()
    detail = page.locator(".detail")
    expect(detail.locator("h2").first).to_have_text("assistant on questions.jsonl")
    expect(detail.locator(".score", has_text="contains").locator("strong")).to_have_text("0.875")
    expect(detail).to_contain_text("3 rows went wrong")
    expect(detail.locator(".grid").last).to_contain_text("facts missing")
    detail.get_by_role("button", name="Compare").click()
    expect(detail.locator(".verdict")).to_contain_text("assistant is better in contains")
    expect(detail.locator(".plot figcaption").first).to_have_text("Scores over time")
    expect(detail.locator(".facts")).to_contain_text(XSS[1])  # the dataset's folder, as text
    pictures(page, "evaluations")
    assert not (wrong := both(page, "evaluations")), "\n".join(wrong)
    with page.context.expect_page() as opened:
        detail.get_by_role("link", name="Report").click()
    report = opened.value
    expect(report.locator("h1")).to_contain_text("assistant on questions.jsonl")
    expect(report.locator("h2").first).to_have_text("3 rows went wrong")
    page.goto(f"{live.url}/console/evaluations?id={before}")
    expect(detail).to_contain_text("18 rows went wrong")
