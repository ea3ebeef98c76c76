"""What an evaluation costs: `python -m tests.bench.evals [--rows 1000] [--kills 3] [--models FOLDER]`. Prints one JSON object.

- `score_s`: seconds of processor for ten deterministic scorers over the rows, with their intervals, without predictions.
- `export_cpu_s`: seconds of processor, the exporting process included, to record the rows in MLflow on SQLite.
- `lost`, `asked_again`: of ten times as many rows in a run that was killed (SIGKILL) so many times and then finished.
- `groundedness_ms`, `faithfulness_ms`, `answerability_ms`: processor time of one pair, of one question with its ten passages, one
  thread.
- `caught`, `blocked`: shares of simulated candidates that lose 5 points, and that lose none, which a gate with a margin of 5
  points does not let pass, at 1,000 rows.
- `false_stops`: share of simulated experiments with equal arms that are ever told apart, with a look every 25 samples.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from evals.data import Prediction, Row, RowResult
from evals.journal import score_all
from evals.run import evaluate
from evals.stats import summarize
from tests.live import ROOT

CHILD = """
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


def rows(count: int) -> list[RowResult]:
    """Rows that ten scorers have something to say of."""
    draw, found = random.Random(0), []
    for number in range(count):
        row = Row(
            str(number), f"What is fact {number}?", (f"fact {number}",), (f"doc{number % 50}.md",), line=number,
            expected_answer=f"it is fact {number}", expected_pattern=r"fact \d+", expected_route="rag",
            expected_tools=("search",),
        )  # fmt: skip
        right = draw.random() < 0.8
        said = f"It is fact {number if right else number + 1}."
        sources = [f"doc{draw.randrange(50)}.md" for _ in range(10)]
        found.append(RowResult(row, Prediction(said, sources, latency_ms=draw.random() * 100, route="rag", tools=("search",))))
    return found


def processor() -> float:
    """Seconds of processor of this process and of those it has waited for."""
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def scoring(count: int) -> dict[str, Any]:
    given = rows(count)
    summarize([result.scores for result in score_all(given[:50])[0]])  # what is imported is not counted
    began = time.process_time()
    results, _ = score_all(given)
    estimates = summarize([result.scores for result in results])
    return {"scorers": sum(each.n > 0 for each in estimates.values()), "score_s": round(time.process_time() - began, 2)}


def exporting(count: int, folder: Path) -> float:
    given = {result.row.question: result.prediction for result in rows(count)}
    kept = ("id", "question", "expected_facts", "expected_sources", "expected_answer", "expected_pattern")
    lines = [json.dumps({key: getattr(result.row, key) for key in kept}) for result in rows(count)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")

    async def predict(question: str) -> Prediction:
        return given[question]

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    asyncio.run(
        evaluate("a", folder / "rows.jsonl", predict, tracking_uri=uri, folder=folder / "first", progress=False)
    )  # schema
    began = processor()
    found = asyncio.run(evaluate("a", folder / "rows.jsonl", predict, tracking_uri=uri, folder=folder / "evals", progress=False))
    assert found.rows == count
    return round(processor() - began, 1)


def killed(count: int, kills: int, folder: Path) -> dict[str, int]:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"id": str(n), "question": f"fact {n}"}) + "\n" for n in range(count)))
    (folder / "asked").touch()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD, str(folder)]
    for number in range(1, kills + 1):
        child = subprocess.Popen([*command, "0.01"], env=environment)
        while (folder / "asked").read_bytes().count(b"\n") < number * count // (kills + 1) and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
    subprocess.run([*command, "0"], env=environment, check=True)
    asked = (folder / "asked").read_text().splitlines()
    return {"rows": count, "kills": kills, "lost": count - len(set(asked)), "asked_again": len(asked) - len(set(asked))}


def models(folder: Path) -> dict[str, float]:
    from evals.answerability import Answerability
    from evals.faithfulness import Faithfulness
    from evals.groundedness import Groundedness
    from retrieval.embed import Encoder

    encoder = Encoder.load(folder, threads=1)
    texts = [path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    parts = [part for text in texts for part in text.split("\n\n") if 200 < len(part) < 900 and "|" not in part]
    ground, faithful, answerable = Groundedness(encoder.embed), Faithfulness(encoder.read), Answerability(encoder.embed)
    pairs = [("\n".join(parts[n : n + 5]), parts[n + 7].split(". ")[0] + ".") for n in range(0, min(len(parts) - 10, 60))]
    asked = [(f"What is meant by {parts[n][:40]}?", parts[n : n + 10]) for n in range(0, min(len(parts) - 10, 60), 6)]
    ground.score(*pairs[0])
    faithful.score(*pairs[0])
    answerable.score(*asked[0])
    took = {}
    for name, score, given in (
        ("groundedness_ms", ground.score, pairs[1:]),
        ("faithfulness_ms", faithful.score, pairs[1:]),
        ("answerability_ms", answerable.score, asked[1:]),
    ):
        began = time.process_time()
        for each in given:
            score(*each)  # pyright: ignore[reportArgumentType]
        took[name] = round(1e3 * (time.process_time() - began) / len(given), 1)
    return took


def gates(runs: int) -> dict[str, float]:
    import numpy as np

    from evals.paired import paired

    rng, n, caught, blocked = np.random.default_rng(12), 1_000, 0, 0
    for _ in range(runs):
        before = (rng.random(n) < 0.8).astype(float)
        again = np.where(rng.random(n) < 0.1, (rng.random(n) < 0.8).astype(float), before)
        worse = np.where((again == 1) & (rng.random(n) < 0.05 / 0.8), 0.0, again)
        same, loss = paired(before, again, bounded=True), paired(before, worse, bounded=True)
        blocked += same.lower is None or same.lower <= -0.05
        caught += loss.lower is None or loss.lower <= -0.05
    return {"runs": runs, "caught": round(caught / runs, 4), "blocked": round(blocked / runs, 4)}


def false_stops(runs: int) -> float:
    import numpy as np

    from tests.governance.test_sequential import looks

    rng, stopped = np.random.default_rng(1), 0
    for _ in range(runs // 500):
        found, half = looks(rng, "binary", 500)
        stopped += int((np.abs(found) > half).any(axis=1).sum())
    return round(stopped / (runs // 500 * 500), 4)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.evals")
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--models", type=Path, default=Path(".smalti/models"), help="where the encoder is kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        told = {
            **scoring(options.rows),
            "export_cpu_s": exporting(options.rows, Path(first)),
            "killed": killed(10 * options.rows, options.kills, Path(second)),
            **models(options.models),
            "gate": gates(2_000),
            "false_stops": false_stops(10_000),
        }
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
