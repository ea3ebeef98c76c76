from __future__ import annotations

from pathlib import Path

import pytest

from agents.registry import AgentLoadError, load_builder, names


def test_builders_by_name_module_and_file(tmp_path: Path) -> None:
    assert load_builder("rag").__module__ == "agents.graphs.rag"
    assert load_builder("agents.graphs.supervisor:build") is load_builder("supervisor")
    (tmp_path / "agent.py").write_text("def build(model, retriever, **_):\n    return 'graph'\nmine = build\n")
    assert load_builder("./agent.py:mine", folder=tmp_path)(None, None) == "graph"
    assert load_builder("agent.py", folder=tmp_path)(None, None) == "graph"
    assert {"rag", "supervisor"} <= set(names())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nothing", "known names are plan_execute, rag, react, router, supervisor, swarm"),
        ("no_such_package.agent:build", "there is no module 'no_such_package'"),
        ("agents.graphs.rag:other", "has no 'other'"),
        ("./missing.py:build", "there is no file"),
        ("./broken.py:build", "broken.py:2"),
        ("./syntax.py:build", "syntax.py:1"),
        ("./needs.py:build", "No module named 'not_installed_here'"),
        ("./value.py:build", "is a int, not a function"),
    ],
)
def test_errors_say_what_where_and_what_to_do(tmp_path: Path, spec: str, says: str) -> None:
    (tmp_path / "broken.py").write_text("x = 1\n1 / 0\n")
    (tmp_path / "syntax.py").write_text("def (:\n")
    (tmp_path / "needs.py").write_text("import not_installed_here\n")
    (tmp_path / "value.py").write_text("build = 3\n")
    with pytest.raises(AgentLoadError) as caught:
        load_builder(spec, folder=tmp_path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
