"""A process that speaks vLLM's protocol: its command line, health, metrics, streams, LoRA adapters; and that fails on demand.

What the prompt says decides: `DIE` ends the process in the middle of the answer, `HANG` stops all tokens while health and
metrics go on answering. Run as `python vllm_double.py --model … --port …`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ADAPTERS: dict[str, str] = {}
COUNTS = {"tokens": 0, "running": 0}
HANGING = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        print(format % args, flush=True)

    def do_GET(self) -> None:
        if self.path == "/health":
            self._send(200, b"")
        elif self.path == "/metrics":
            labels = '{model_name="base",engine="0"}'
            lines = [
                "# TYPE vllm:generation_tokens_total counter",
                f"vllm:generation_tokens_total{labels} {COUNTS['tokens']}",
                f"vllm:num_requests_running{labels} {COUNTS['running']}",
                'vllm:something_else{le="1"} 5',
            ]
            self._send(200, "\n".join(lines).encode(), "text/plain")
        else:
            self._send(404, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers.get("authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            self._send(401, b'{"error": "Unauthorized"}')
        elif self.path == "/v1/load_lora_adapter":
            if not os.path.isdir(body["lora_path"]):
                self._send(400, json.dumps({"error": {"message": f"no such folder: {body['lora_path']}"}}).encode())
            else:
                ADAPTERS[body["lora_name"]] = body["lora_path"]
                self._send(200, b"Success: LoRA adapter added")
        elif self.path == "/v1/unload_lora_adapter":
            ADAPTERS.pop(body["lora_name"], None)
            self._send(200, b"Success: LoRA adapter removed")
        else:
            self._generate(body)

    def _generate(self, body: dict[str, Any]) -> None:
        if body["model"] != "base" and body["model"] not in ADAPTERS:
            self._send(404, b'{"error": {"message": "no such model"}}')
            return
        chat = self.path.endswith("/chat/completions")
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        words = [body["model"], "chat" if chat else "prompt", *prompt.split()]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        COUNTS["running"] += 1
        for word in words:
            if word == "DIE":
                os.kill(os.getpid(), signal.SIGKILL)
            if word == "HANG":
                HANGING.set()
            while HANGING.is_set():
                time.sleep(0.1)
            COUNTS["tokens"] += 1
            self._chunk({"delta": {"content": word + " "}} if chat else {"text": word + " ", "logprobs": logprobs(word, body)})
        COUNTS["running"] -= 1
        usage = {"prompt_tokens": 3, "completion_tokens": len(words)}
        self._chunk(({"delta": {}} if chat else {"text": ""}) | {"finish_reason": "stop"}, usage=usage)
        self._raw(b"data: [DONE]\n\n")
        self._raw(b"")

    def _chunk(self, choice: dict[str, Any], **more: Any) -> None:
        self._raw(b"data: " + json.dumps({"choices": [{"index": 0, **choice}], **more}).encode() + b"\n\n")

    def _raw(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def logprobs(word: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """Of one token, as text completions tell them."""
    if (count := body.get("logprobs")) is None:
        return None
    best = {word + " ": -0.5, "other": -1.5}
    return {
        "tokens": [word + " "],
        "token_logprobs": [-0.5],
        "top_logprobs": [dict(list(best.items())[:count])] if count else None,
        "text_offset": [0],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    for flag in ("--model", "--host", "--served-model-name", "--dtype", "--tensor-parallel-size", "--shutdown-timeout"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--chat-template")
    parser.add_argument("--max-model-len")
    parser.add_argument("--enable-lora", action="store_true")
    given = parser.parse_args()
    print(f"serving {given.model}", flush=True)
    if given.model == "broken":
        sys.exit("RuntimeError: this model cannot be loaded")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer((given.host, given.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
