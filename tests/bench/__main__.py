"""`make bench`: every measurement, one after the other, as a table. It asserts nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.live import ROOT

BENCHES = {
    "gateway": ["tests/bench/gateway.py"],
    "hop": ["-m", "tests.bench.hop"],
    "ingestion": ["tests/bench/ingest.py", "--chunks", "2000"],
    "search": ["-m", "tests.bench.search", "--rows", "20000"],
    "llm": ["-m", "tests.bench.llm"],
    "serving": ["-m", "tests.bench.serving", "--seconds", "3"],
    "runs": ["-m", "tests.bench.runs"],
    "ui": ["-m", "tests.bench.ui", "--calls", "100000"],
    "evals": ["-m", "tests.bench.evals"],
    "answers": ["-m", "tests.bench.answers", "--kills", os.environ.get("SMALTI_BENCH_KILLS", "10")],
}


def flat(told: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(told, dict):
        return [row for key, value in told.items() for row in flat(value, f"{path}.{key}" if path else str(key))]
    return [(path, str(told))]


def main() -> None:
    console = Console()
    for name in sys.argv[1:] or BENCHES:
        with console.status(name):
            done = subprocess.run([sys.executable, *BENCHES[name]], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            console.print(f"{name} failed\n{done.stderr[-2000:]}", markup=False)
            continue
        table = Table(title=name, title_justify="left", box=None)
        table.add_column("measure")
        table.add_column("value", justify="right")
        for key, value in flat(json.loads(done.stdout[done.stdout.index("{") :])):
            table.add_row(key, value)
        console.print(table, "")


if __name__ == "__main__":
    main()
