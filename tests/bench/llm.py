"""The engine of local models against `generate` with the same batch; and what the server adds to each streamed token.

`python -m tests.bench.llm [--model FOLDER] [--rounds N]` prints JSON; without `--model` a tiny Llama with random weights is
made. `generate` and the engine take turns on the same prompts, greedy, so that both see the same machine; the engine's tokens
cross its process's socket and become text. The server's part is microseconds of one core from a frame of the engine's process to
the bytes of Chat Completions' stream, gateway and journal included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from governance.call import Call
from governance.gateway import Gateway
from governance.grants import Grants
from governance.identity import Identity
from governance.journal import Journal
from governance.limits import Limits
from governance.policies import Policies
from serving.engines.local import LocalModel, Weights
from serving.engines.wire import Wire
from serving.protocols.chat import Encoder
from serving.state import open_database
from tests.serving.tiny import CORPUS, make_model

TOKENS = 128


def call(prompt: str, credential: str | None = None) -> Call:
    said = [{"type": "message", "role": "user", "content": prompt}]
    payload = {"input": said, "raw": True, "temperature": 0, "max_output_tokens": TOKENS}
    return Call("tiny", "chat", payload, credential=credential, stream=True)


async def written(model: LocalModel, prompt: str) -> int:
    last = None
    async for event in model.answer(call(prompt)):
        last = event
    assert last is not None
    return last.data["response"]["usage"]["output_tokens"]


async def throughput(folder: Path, rounds: int, threads: int, batch: int) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bare: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = [text[: 12 + 3 * (at // len(CORPUS))] for at, text in enumerate(CORPUS * batch)][:batch]
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    given = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    model = LocalModel(Weights(str(folder)), folder.parent / "bench.log", max_batch=batch, threads=threads)
    await model.start()
    rates: dict[str, list[float]] = {"generate": [], "engine": []}
    try:
        for turn in range(rounds + 1):
            began = time.perf_counter()
            bare.generate(**given, max_new_tokens=TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id)
            generate = time.perf_counter() - began
            began = time.perf_counter()
            counts = await asyncio.gather(*(written(model, prompt) for prompt in prompts))
            engine = time.perf_counter() - began
            if turn:  # the first warms up
                rates["generate"].append(batch * TOKENS / generate)
                rates["engine"].append(sum(counts) / engine)
    finally:
        await model.stop(0)
    middle = {name: round(statistics.median(values)) for name, values in rates.items()}
    shares = [mine / theirs for mine, theirs in zip(rates["engine"], rates["generate"], strict=True)]
    return {"tokens_per_second": middle, "engine_to_generate": round(statistics.median(shares), 2)}


class _Sent:
    def write(self, data: bytes) -> None:
        pass


async def overhead(tokens: int, rounds: int) -> dict[str, Any]:
    chunks: list[Any] = [{"choices": [{"delta": {"content": "word "}}]} for _ in range(tokens)]
    chunks.append(
        {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}}
    )
    took: dict[str, list[float]] = {"frames": [], "server": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        database = open_database(f"sqlite:///{folder}/smalti.db")
        identity, grants = Identity(database, folder / "pepper"), Grants(database)
        _, secret = identity.create_key("alice")
        grants.grant("user:alice", "endpoint:tiny", "CAN_QUERY")
        model = LocalModel(Weights("none"), folder / "log")
        wire = model.process._wire = Wire()
        wire.connection_made(_Sent())  # type: ignore[arg-type]
        model.process._ready.set()

        def feed() -> None:
            identifier = max(wire.waiting)
            frames = [[identifier, "event", chunk] for chunk in chunks] + [[identifier, "end", None]]
            sent = iter([struct.pack(">I", len(body)) + body for body in map(orjson.dumps, frames)])
            loop = asyncio.get_running_loop()

            def one() -> None:  # a turn of the loop each, as tokens come
                if (raw := next(sent, None)) is not None:
                    wire.data_received(raw)
                    loop.call_soon(one)

            one()

        with Journal(database, folder / "journal") as journal:
            gateway = Gateway(identity, grants, Limits(Policies(database)), journal)
            for turn in range(rounds + 1):
                asyncio.get_running_loop().call_later(0.01, feed)
                await asyncio.sleep(0)
                began, count = 0.0, 0
                async for _ in model.process.stream({}):
                    began = began or time.perf_counter()
                frames = time.perf_counter() - began
                asked = call("hello", secret)
                encoder = Encoder(asked, include_usage=True)
                asyncio.get_running_loop().call_later(0.01, feed)
                began = 0.0
                async for event in gateway.call(asked, model.engine):
                    began = began or time.perf_counter()
                    count += len(encoder.event(event))
                server = time.perf_counter() - began
                assert count
                if turn:
                    took["frames"].append(frames)
                    took["server"].append(server)
        database.dispose()
    per = {name: statistics.median(values) / tokens * 1e6 for name, values in took.items()}
    return {"frame_us": round(per["frames"], 1), "added_us": round(per["server"] - per["frames"], 1)}


async def main(given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = given.model or make_model(Path(name) / "model")
        result: dict[str, Any] = {"cores": os.cpu_count(), "threads": given.threads, "batch": given.batch, "tokens": TOKENS}
        result["a_streamed_token"] = await overhead(500, given.rounds * 4)
        return result | await throughput(folder, given.rounds, given.threads, given.batch)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    print(json.dumps(asyncio.run(main(parser.parse_args())), indent=2))
