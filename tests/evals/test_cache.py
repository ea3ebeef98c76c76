from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evals.cache import Cache, code_digest
from evals.data import Prediction, Row, load_dataset
from evals.journal import read_journal
from evals.run import evaluate

SLOW = """
import asyncio, sys
from pathlib import Path
from evals.data import Prediction
from evals.run import evaluate
home = Path(sys.argv[1])
async def predict(question):
    with open(home / "asked", "a") as log:
        log.write(question + "\\n")
    await asyncio.sleep(float(sys.argv[2]))
    return Prediction("The " + question)
asyncio.run(evaluate("a", home / "rows.jsonl", predict, tracking_uri=None, folder=home / "evals", concurrency=16,
    identity={"code": "1"}, progress=False))
"""


def test_three_kills_lose_no_row_and_ask_at_most_a_batch_again(tmp_path: Path) -> None:
    rows, concurrency = 10_000, 16
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"id": str(n), "question": f"fact {n}"}) + "\n" for n in range(rows)))
    (tmp_path / "asked").touch()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for number in range(1, 4):
        child = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path), "0.02"], env=environment)
        try:
            deadline = time.monotonic() + 60
            while (tmp_path / "asked").read_bytes().count(b"\n") < number * 300 and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
    before = (tmp_path / "asked").read_bytes().count(b"\n")
    assert 900 <= before < rows
    subprocess.run([sys.executable, "-c", SLOW, str(tmp_path), "0"], env=environment, check=True, timeout=100)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(set(asked)) == rows
    assert len(asked) - rows <= 3 * concurrency
    last = read_journal(sorted((tmp_path / "evals").glob("*.jsonl"), key=lambda path: path.stat().st_mtime)[-1])
    assert (last.rows, len(last.errors)) == (rows, 0)
    assert all(result.prediction.text == f"The {result.row.question}" for result in last.results)


def test_what_a_judge_needs_is_a_set_and_names_it_alike_in_every_process() -> None:
    told = "from evals.cache import digest; print(digest([{'inputs', 'outputs', 'trace', 'expectations'}]))"
    places = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    said = {
        subprocess.run(
            [sys.executable, "-c", told], env={**places, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "123"
    }
    assert len(said) == 1


@pytest.mark.anyio
async def test_only_what_changed_is_asked_again(tmp_path: Path) -> None:
    asked: list[str] = []

    async def predict(question: str) -> Prediction:
        asked.append(question)
        return Prediction(error="503") if question == "bad" else Prediction(question.upper())

    async def run(*questions: str, **more) -> list[str]:
        asked.clear()
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"question": question, "expected_facts": ["x"]}) + "\n" for question in questions))
        found = await evaluate("a", path, predict, tracking_uri=None, folder=tmp_path / "evals", **more)
        assert found.rows == len(questions)
        return sorted(asked)

    one = {"identity": {"code": "1"}}
    assert await run("a", "b", "bad", **one) == ["a", "b", "bad"]
    assert await run("a", "b", "bad", **one) == ["bad"]  # an error is never kept
    assert await run("a", "c", **one) == ["c"]
    assert await run("a", "c", identity={"code": "2"}) == ["a", "c"]
    assert await run("a", "c", **one, reuse=False) == ["a", "c"]
    # Without an identity nothing says that the endpoint is still the same, so a finished evaluation is asked anew.
    assert await run("a", "b") == ["a", "b"]
    assert await run("a", "b") == ["a", "b"]


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    cache = Cache(tmp_path, {"code": "1"})
    cache.keep(Row("1", "a"), Prediction("A", tools=("t",)))
    cache.close()
    with cache.path.open("ab") as file:
        file.write(b'{"key": "abc", "va')
    again = Cache(tmp_path, {"code": "1"})
    again.keep(Row("2", "b"), Prediction("B"))
    again.close()
    last = Cache(tmp_path, {"code": "1"})
    assert last.prediction(Row("x", "a")) == Prediction("A", tools=("t",))
    assert last.prediction(Row("x", "b")) == Prediction("B")
    assert last.prediction(Row("x", "c")) is None
    last.close()


def test_code_is_told_apart_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    first = code_digest({"room": tmp_path})
    assert code_digest({"room": tmp_path}) == first
    (tmp_path / "a.py").write_text("2")
    assert code_digest({"room": tmp_path}) != first
    assert load_dataset(Path(__file__).parents[2] / "evals" / "datasets" / "smalti.jsonl").rows
