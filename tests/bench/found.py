"""Collections made of what is at hand, for choosing how a question is weighed: rules by their codes, documentation, source code.

They are sets of `tests.bench.quality`; nothing of them is in the sets that are only reported.
"""

from __future__ import annotations

import ast
import json
import random
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Asked = tuple[dict[str, str], dict[str, set[str]]]
Set = tuple[dict[str, tuple[str, str]], dict[str, Asked]]


def rules(data: Path) -> Set:
    """Ruff's rules, asked for by code, by name and by what they say."""
    ruff = [str(Path(sys.executable).with_name("ruff")), "rule", "--all", "--output-format", "json"]
    told = json.loads(subprocess.run(ruff, capture_output=True, check=True).stdout)
    draw = random.Random(1)
    ways = ("what is {}?", "why does {} complain", "{}", "how do I turn off {} for one file?", "explain {} to me")
    docs: dict[str, tuple[str, str]] = {}
    codes, names, said = dict[str, str](), dict[str, str](), dict[str, str]()
    for rule in told:
        if not rule["code"] or not rule.get("explanation"):
            continue
        code = rule["code"]
        docs[code] = "", f"{code} {rule['name']}\n{rule['explanation'][:900]}"
        codes[code], names[code] = draw.choice(ways).format(code), draw.choice(ways).format(rule["name"])
        said[code] = rule["summary"]
    chosen = draw.sample(sorted(docs), 350)
    asked = {"rules, by code": codes, "rules, by name": names, "rules, by message": said}
    return docs, {label: _each(of, chosen) for label, of in asked.items()}


def headings(data: Path) -> Set:
    """Sections of documentation without their headings, asked for by these, and by identifiers in at most two of them."""
    docs: dict[str, tuple[str, str]] = {}
    over, where = dict[str, str](), dict[str, set[str]]()
    for path in sorted((data / "docs").rglob("*.md")):
        parts = re.split(r"^(#{1,4} .+)$", path.read_text(errors="replace"), flags=re.M)
        for heading, body in zip(parts[1::2], parts[2::2], strict=True):
            if len(body.split()) < 25:
                continue
            key = str(len(docs))
            docs[key], over[key] = ("", body.strip()[:1200]), re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading.strip("# `"))
            for name in set(re.findall(r"`([A-Za-z_][\w.]*(?:\(\))?)`", docs[key][1])):
                where.setdefault(name, set()).add(key)
    draw, held = random.Random(2), Counter(over.values())
    ways = ("how do I use {}?", "{}", "what does {} do", "example of {}")
    rare = [name for name in sorted(where) if len(where[name]) <= 2 and len(name) > 5]
    chosen = draw.sample(rare, min(300, len(rare)))
    named: Asked = {name: draw.choice(ways).format(name) for name in chosen}, {name: where[name] for name in chosen}
    alone = [key for key in over if held[over[key]] == 1 and len(over[key]) > 3]
    return docs, {"headings": _each(over, alone), "identifiers": named}


def functions(data: Path) -> Set:
    """Functions of Python's library without their docstrings, asked for by the first paragraph of these, and by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    docs: dict[str, tuple[str, str]] = {}
    what, names = dict[str, str](), dict[str, str]()
    for path in [*sorted(root.glob("*.py")), *sorted((root / "email").glob("*.py")), *sorted((root / "asyncio").glob("*.py"))]:
        source = path.read_text(errors="replace")
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
                continue
            said = (ast.get_docstring(node) or "").split("\n\n")[0]
            code = "\n".join([lines[node.lineno - 1], *lines[node.body[1].lineno - 1 : node.end_lineno]])
            if len(said.split()) >= 5 and len(code.split()) >= 15:
                key = f"{path.stem}.{node.name}.{node.lineno}"
                docs[key], what[key] = ("", f"# {path.name}\n{code[:1200]}"), " ".join(said.split())
                names[key] = f"where is {node.name} defined"
    chosen, held = random.Random(9).sample(sorted(docs), 400), Counter(names.values())
    alone = [key for key in chosen if held[names[key]] == 1]
    return docs, {"functions, by docstring": _each(what, chosen), "functions, by name": _each(names, alone)}


def _each(asked: Mapping[str, str], chosen: list[str]) -> Asked:
    return {key: asked[key] for key in chosen}, {key: {key} for key in chosen}


SETS: dict[str, Any] = {"rules": rules, "headings": headings, "functions": functions}
