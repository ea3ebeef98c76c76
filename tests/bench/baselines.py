"""How often the right document is found, side by side with the pipelines a user would assemble from other libraries.

    python -m tests.bench.baselines --data FOLDER [--sets xquad,scifact,wice] [--pipelines langchain,bm25s,…]
        [--environment FOLDER]

Each document is a file, indexed by Smalti as `smalti index add` does and by the others as their quick starts do, with the same
encoder; a document is as good as its best piece. The others run in an environment of their own, made on the first run.
Prints one JSON object: nDCG@10, hits@1 and hits@5 of each, seconds of indexing, and the 95 % bootstrap interval of Smalti's
nDCG@10 less each other's, paired by question. `mean` is over the sets that are reported only (see `tests/bench/quality.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from retrieval import Encoder, Indexes
from retrieval.weights import find
from serving.state import open_database
from tests.bench.quality import gain, interval, scifact, wice, xquad

SETS = {"xquad": (xquad, "xquad-en"), "scifact": (scifact, "scifact-test"), "wice": (wice, "wice")}
REPORTED = ("xquad", "scifact")
OTHERS = ("langchain", "llamaindex", "haystack", "haystack_bm25", "bm25s", "minilm")
TORCH = "torch==2.13.0"
PACKAGES = (
    "langchain-chroma>=1,<2",
    "langchain-huggingface>=1,<2",
    "langchain-text-splitters>=1,<2",
    "llama-index-core>=0.14,<0.15",
    "llama-index-embeddings-huggingface>=0.6,<0.9",
    "haystack-ai>=2.15,<3",
    "sentence-transformers>=5,<7",
    "bm25s>=0.3,<0.4",
    "PyStemmer>=2.2,<4",
)


def environment(folder: Path) -> Path:
    """The others' interpreter, in a virtual environment made where there is none."""
    python = folder / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for wanted in ((TORCH,), PACKAGES):  # PyTorch first, so that what is asked for after it takes this build
            subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], check=True)
    return python


def smalti(work: Path, texts: dict[str, str], asked: dict[str, str]) -> dict[str, Any]:
    """What Smalti finds in an index of the files, its defaults throughout."""
    docs = work / "docs"
    docs.mkdir()
    for key, text in texts.items():
        (docs / f"{key}.txt").write_text(text)
    encoder = Encoder.load(work / "encoder")
    began = time.perf_counter()
    indexes = Indexes(open_database(f"sqlite:///{work}/smalti.db"), work / "chroma", encoder)
    try:
        indexes.add("bench", docs)
        indexes.sync("bench")
        seconds = time.perf_counter() - began
        orders = {
            key: list(dict.fromkeys(Path(found.source).stem for found in indexes.search("bench", text, k=40)))[:10]
            for key, text in asked.items()
        }
    finally:
        indexes.close()
        encoder.close()
    return {"seconds": round(seconds, 1), "orders": orders}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", default="xquad,scifact,wice")
    parser.add_argument("--pipelines", default=",".join(OTHERS))
    parser.add_argument("--environment", type=Path, default=Path.home() / ".cache/smalti-bench/baselines")
    options = parser.parse_args()
    python = environment(options.environment)
    told: dict[str, Any] = {}
    for name in options.sets.split(","):
        read, label = SETS[name]
        docs, sets = read(options.data)
        asked, right = sets[label]
        asked = {key: text for key, text in asked.items() if right.get(key)}
        texts = {key: f"{title}\n\n{text}" if title else text for key, (title, text) in docs.items()}
        gains: dict[str, np.ndarray] = {}
        told[name] = {"questions": len(asked), "documents": len(texts)}
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            for file, rows in (("documents", texts), ("questions", asked)):
                lines = (json.dumps({"id": key, "text": text}) for key, text in rows.items())
                (work / f"{file}.jsonl").write_text("\n".join(lines))
            for pipeline in ("smalti", *options.pipelines.split(",")):
                if pipeline == "smalti":
                    found = smalti(work, texts, asked)
                else:
                    command = [python, Path(__file__).with_name("stock.py"), pipeline, work, find(work / "weights")]
                    quiet = {
                        **os.environ,
                        "HF_HUB_OFFLINE": "1",
                        "ANONYMIZED_TELEMETRY": "False",
                        "HAYSTACK_TELEMETRY_ENABLED": "False",
                    }
                    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=quiet)
                    if done.returncode:
                        raise SystemExit(f"{pipeline} failed\n{done.stderr[-3000:]}")
                    found = json.loads(done.stdout.splitlines()[-1])
                orders = [(found["orders"][key], right[key]) for key in asked]
                gains[pipeline] = np.array([gain(order, wanted) for order, wanted in orders])
                told[name][pipeline] = {
                    "nDCG@10": round(float(gains[pipeline].mean()), 4),
                    **{f"hits@{k}": round(float(np.mean([bool(set(o[:k]) & w) for o, w in orders])), 4) for k in (1, 5)},
                    "index_s": found["seconds"],
                }
                if pipeline != "smalti":
                    told[name][pipeline]["smalti_better_by"] = interval(gains["smalti"] - gains[pipeline])
                print(name, pipeline, told[name][pipeline], file=sys.stderr, flush=True)
    kept = [name for name in REPORTED if name in told]
    ways = ("smalti", *options.pipelines.split(","))
    told["mean"] = {way: round(float(np.mean([told[name][way]["nDCG@10"] for name in kept])), 4) for way in ways} if kept else {}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
