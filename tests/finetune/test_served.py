"""A trained classifier is an endpoint behind the gateway: the snippet of docs/finetuning.md, against a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.finetune.tiny import bert
from tests.live import ROOT, environment, serving, smalti

SNIPPET = re.compile(r"^```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_recipe_of_the_docs_becomes_an_endpoint(tmp_path: Path) -> None:
    base = bert(tmp_path / "base")  # in the place of MiniLM, which takes longer to write than to train here
    home = tmp_path / "home"
    trained = smalti("finetune", "run", "finetune/recipes/tweet_sentiment.yaml", f"base_model={base}", "threads=1", home=home)
    assert trained.returncode == 0, trained.stderr
    assert "main.default.tweet_sentiment version 1, alias champion" in trained.stdout
    found = SNIPPET.search((ROOT / "docs" / "finetuning.md").read_text())
    assert found is not None
    with serving(home) as live:
        code = found[1].replace("http://127.0.0.1:8000", live.url)
        env = environment(home, SMALTI_KEY=live.key) | {"PATH": os.environ["PATH"]}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        assert re.search(r"'label': '(negative|neutral|positive)'", done.stdout), done.stdout
        with live.client() as client:
            body = {"dataframe_split": {"columns": [], "data": []}}
            refused = client.post("/serving-endpoints/sentiment/invocations", json=body)
        assert refused.status_code == 400
        assert "text" in refused.text
