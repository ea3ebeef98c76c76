"""Coverage-guided fuzzing of what reads foreign text: guardrails, policies, filters, event streams, JSON within JSON.

`pip install atheris; python -m tests.bench.fuzz [--seconds 60] [--target guardrails]` runs each target for so long and stops at
the first input that breaks its promise: a secret that leaves, a text that is masked otherwise in pieces than as a whole, an
exception that nobody is told to expect. Prints one JSON object: inputs tried by target.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import orjson

SECRETS = {"EMAIL": "anna@example.org", "IBAN": "DE89370400440532013000", "CREDIT_CARD": "4111111111111111"}


def guardrails(data: Any) -> None:
    from governance.guardrails.rules import Hold, Rules, mask

    rules, hold = Rules("MASK", ["project nightfall"]), Hold(Rules("MASK"))
    kind = data.PickValueInList(sorted(SECRETS))
    text = f"{data.ConsumeUnicodeNoSurrogates(60)} {SECRETS[kind]} {data.ConsumeUnicodeNoSurrogates(60)}"
    rules.find(text)
    whole, place, told = mask(text, hold.rules.find(text)), 0, ""
    while place < len(text):
        size = data.ConsumeIntInRange(1, 30)
        told, place = told + hold.push(text[place : place + size]), place + size
    told += hold.end()
    assert told == whole, (text, told, whole)
    assert SECRETS[kind] not in told, (text, told)


def arguments(data: Any) -> None:
    from governance.guardrails.texts import json_text

    text = data.ConsumeUnicodeNoSurrogates(200)
    seen = json_text(text, lambda each: each.replace("a", "*"))
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return
    orjson.loads(seen)


def policies(data: Any) -> None:
    from governance.policies import AiGatewayConfig

    try:
        given = orjson.loads(data.ConsumeBytes(400))
    except orjson.JSONDecodeError:
        given = {
            data.PickValueInList(list(AiGatewayConfig.model_fields)): {data.ConsumeUnicodeNoSurrogates(9): data.ConsumeInt(8)}
        }
    try:
        AiGatewayConfig.parse(given).as_dict()
    except ValueError as error:
        told = str(error)
    else:
        return
    assert told.isprintable(), told


def filters(data: Any) -> None:
    from retrieval.errors import RetrievalError
    from retrieval.filters import parse

    with contextlib.suppress(RetrievalError):
        parse(data.ConsumeUnicodeNoSurrogates(120))


def streams(data: Any) -> None:
    from serving.protocols.sse import Parser

    parts = [data.ConsumeBytes(data.ConsumeIntInRange(1, 20)) for _ in range(data.ConsumeIntInRange(0, 20))]
    parser = Parser()
    cut = [event for part in parts for event in parser.feed(part)]
    assert cut == Parser().feed(b"".join(parts)), parts


TARGETS: dict[str, Callable[[Any], None]] = {each.__name__: each for each in (guardrails, arguments, policies, filters, streams)}


def run(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which atheris ends."""
    import atheris  # pyright: ignore[reportMissingImports]

    with atheris.instrument_imports(include=["governance", "retrieval", "serving.protocols"]):
        for module in ("governance.guardrails.rules", "governance.guardrails.texts", "governance.policies", "retrieval.filters"):
            importlib.import_module(module)
        importlib.import_module("serving.protocols.sse")

    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", "-max_len=600", "-print_final_stats=1"],
        lambda raw: TARGETS[name](atheris.FuzzedDataProvider(raw)),
    )
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, help="of each target")
    parser.add_argument("--target", choices=TARGETS)
    options = parser.parse_args()
    if os.environ.get("SMALTI_FUZZ_TARGET"):
        run(os.environ["SMALTI_FUZZ_TARGET"], options.seconds)
        return
    told: dict[str, int] = {}
    for name in [options.target] if options.target else TARGETS:
        environment = {**os.environ, "SMALTI_FUZZ_TARGET": name}
        command = [sys.executable, "-m", "tests.bench.fuzz", "--seconds", str(options.seconds)]
        began = time.monotonic()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr[-4_000:], file=sys.stderr)
            raise SystemExit(f"{name} broke its promise after {time.monotonic() - began:.0f} s")
        lines = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        told[name] = int(lines[-1].split()[-1]) if lines else 0
    print(json.dumps(told))


if __name__ == "__main__":
    main()
