from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from agents import calibrate
from agents.support import CANDIDATE_FEATURES, QUESTION_FEATURES, models
from retrieval.types import Passage
from tests.agents.conftest import vector

CITIES = [(f"Town{i}ville", 1200 + 7 * i, f"Person{i}ski") for i in range(40)]


def embed(texts: list[str]) -> np.ndarray:
    return np.stack([vector(text) for text in texts])


def rows() -> list[dict[str, Any]]:
    made = []
    for number, (town, year, founder) in enumerate(CITIES):
        text = f"The harbour lies in the north. {town} was founded by {founder} in {year}. Fish is sold there every day."
        near = Passage(f"p{number}", f"d{number}", "i", f"{town}.txt", town, (), text, 0, len(text), similarity=0.7)
        far = "Glaciers move slowly. Ice melts in the summer months."
        other = Passage("x", "x", "i", "ice.txt", "Ice", (), far, 0, len(far), similarity=0.1)
        for passages, answerable in (([near, other], True), ([other], False)):
            made.append(
                {
                    "question": f"When was {town} founded?",
                    "passages": [p.to_dict() for p in passages],
                    "answers": [str(year)] if answerable else [],
                    "answerable": answerable,
                    "group": town,
                    "set": "towns",
                }
            )
    return made


def test_models_are_fitted_and_reported_on_what_was_held_out() -> None:
    loaded = calibrate.load(rows(), embed)
    spec = json.loads(json.dumps(calibrate.fit(loaded)))
    assert set(spec["ranker"]["coefficients"]) == set(CANDIDATE_FEATURES)
    assert set(spec["answerable"]["coefficients"]) == set(QUESTION_FEATURES)
    held = [row for row in loaded if row.held_out]
    assert 0 < len(held) < len(loaded)
    report = calibrate.report(held, spec)
    assert report["rows"] == len(held)
    assert report["containment_all"] == report["abstention_recall"] == report["abstention_precision"] == 1.0


def test_what_is_shipped_fits_the_code() -> None:
    shipped = models()
    assert set(shipped.ranker.coefficients) == set(CANDIDATE_FEATURES)
    assert set(shipped.answerable.coefficients) == set(QUESTION_FEATURES)
    assert 0 < shipped.threshold < 1
    assert Path(calibrate.__file__).with_name("answerability.json").stat().st_size < 10_000


def test_measures_are_squads() -> None:
    assert calibrate.contains("It has the 30 days.", ["30 Days"])
    assert not calibrate.contains("It has 301 days", ["30"])
    assert calibrate.token_f1("a cat sat", ["the cat"]) == 2 / 3
    assert re.fullmatch(r"[a-z ]+", calibrate.normal("An apple, THE pear!"))
