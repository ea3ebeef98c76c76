"""Small words on the pages."""

from __future__ import annotations

from datetime import datetime

from serving.ui.chat import questions
from serving.ui.parts import Latest, age_group, moment

NOW = datetime(2026, 5, 14, 15, 0).timestamp()


def at(*when):
    return datetime(*when).timestamp()


def test_threads_stand_under_when_they_were_used():
    times = [at(2026, 5, 14, 0, 1), at(2026, 5, 13, 23, 59), at(2026, 5, 9, 12), at(2026, 4, 1)]
    assert [age_group(time, NOW) for time in times] == ["Today", "Yesterday", "This week", "Earlier"]


def test_moments_are_short():
    assert moment(at(2026, 5, 14, 9, 5), NOW) == "09:05"
    assert moment(at(2026, 5, 3, 9, 5), NOW) == "3 May, 09:05"
    assert moment(at(2025, 12, 31, 9, 5), NOW) == "31 Dec 2025"


def test_questions_are_made_from_titles():
    assert questions([]) == []
    asked = questions(["How to  Rotate keys", "What is a thread?", "  ", "x" * 200, "never asked"])
    assert asked[:2] == ["How do I rotate keys?", "What is a thread?"]
    assert len(asked) == 3
    assert len(asked[2]) < 110
    assert len(questions(["A", "A", "B", "C"])) == 3


def test_a_load_that_was_overtaken_is_told_so():
    loads = Latest()
    first = loads.begin()
    assert first()
    second = loads.begin()
    assert (first(), second()) == (False, True)
