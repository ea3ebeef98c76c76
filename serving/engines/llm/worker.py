"""The process of one local language model: loads it with transformers and answers requests over a socket.

Frames are those of `serving.engines.worker`. Requests are `stream` with a Chat Completions body (or `{"prompt": …}` for bare
text) and `adapter`; and `load_adapter` (`name`, `path`) and `unload_adapter` (`name`).
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from serving.engines.cores import free_cores
from serving.engines.llm.grammar import Grammars, schema_of
from serving.engines.llm.prompt import Prompts
from serving.engines.llm.sampling import Sampling
from serving.engines.llm.scheduler import Generation, Scheduler
from serving.engines.llm.text import Detokenizer, Stops, ToolCalls
from serving.engines.rows import Refused
from serving.engines.worker import Wire, leave_with


class _Wire(Wire):
    def send_all(self, frames: list[list[Any]]) -> None:
        """Send many frames at once."""
        try:
            self.flush(b"".join(self.frame(*frame) for frame in frames))
        except OSError:
            os._exit(0)  # the server is gone


class Adapters:
    """The LoRA adapters of one model.

    Parameters
    ----------
    model: the base model; an adapter's layers are put into it.
    """

    def __init__(self, model: Any) -> None:
        self._base = model
        self._peft: Any = None
        self._names: dict[str, str] = {}
        self._used: str | None = None
        self._made = 0

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @property
    def names(self) -> list[str]:
        return sorted(self._names)

    def load(self, name: str, path: str) -> None:
        """Raises `Refused` where the folder holds no adapter that fits the model."""
        from peft import PeftModel

        folder = Path(path)
        if name in self._names:
            raise Refused(f"There is an adapter {name!r} already: unload it first.", "lora_name")
        if not (folder / "adapter_config.json").is_file() or not (folder / "adapter_model.safetensors").is_file():
            raise Refused(f"{folder} holds no adapter (adapter_config.json and adapter_model.safetensors).", "lora_path")
        self._made += 1
        inner = f"lora{self._made}"  # PEFT takes no dots in names
        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self._base, path, adapter_name=inner)
            else:
                self._peft.load_adapter(path, adapter_name=inner)
        except Exception as error:
            traceback.print_exc()
            raise Refused(f"The adapter does not fit the model: {' '.join(str(error).split())[:300]}", "lora_path") from None
        self._peft.eval()
        self._names[name] = inner
        self._used = ""  # unknown: loading may have activated it
        self.use(None)

    def unload(self, name: str) -> None:
        self.use(None)
        self._peft.delete_adapter(self._names.pop(name))

    def use(self, name: str | None) -> None:
        """Make this adapter the one that counts; None: the model as it is."""
        if name == self._used or self._peft is None:
            return
        if name is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(self._names[name])
        self._used = name


class Server:
    """Answers the server's frames."""

    def __init__(self, wire: _Wire, spec: Mapping[str, Any]) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if threads := spec.get("threads") or free_cores(os.environ):
            torch.set_num_threads(int(threads))
        device = spec.get("device") or "auto"
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = spec.get("dtype") or "auto"
        if dtype == "auto" and device == "cpu":
            dtype = "float32"  # half precision is slower than full on most processors
        path = spec["path"]
        self._tokenizer = AutoTokenizer.from_pretrained(spec.get("tokenizer") or path)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True)
        self._model = model.to(device).eval()
        _check(self._model)
        config = self._model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None) or 4096
        self._context = min(int(spec.get("context") or longest), longest)
        self._generation = self._model.generation_config
        ends = self._generation.eos_token_id
        ends = list(ends) if isinstance(ends, list | tuple) else [ends]
        ends = [end for end in {*ends, self._tokenizer.eos_token_id} if end is not None]
        self._prompts = Prompts(self._tokenizer, self._context)
        self._grammars = Grammars(self._tokenizer, config.vocab_size, ends)
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        plain = (lambda ids: backend.decode(ids)) if backend is not None else self._tokenizer.decode
        skipping = (
            (lambda ids: backend.decode(ids, skip_special_tokens=True))
            if backend is not None
            else (lambda ids: self._tokenizer.decode(ids, skip_special_tokens=True))
        )
        self._decode = skipping
        self._wire = wire
        self._adapters = Adapters(self._model)
        for name, folder in (spec.get("adapters") or {}).items():
            self._adapters.load(name, folder)
        self._default = spec.get("adapter")
        self._scheduler = Scheduler(
            self._model, plain, ends, max_batch=int(spec["max_batch"]), send=wire.send_all, use=self._adapters.use
        )
        self._front = ThreadPoolExecutor(1)
        self.info = {
            "streams": True,
            "context": self._context,
            "device": str(self._model.device),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "parameters": self._model.num_parameters(),
            "chat_template": self._prompts.own_template,
            "adapters": self._adapters.names,
        }

    def run(self) -> None:
        threading.Thread(target=self._receive, daemon=True).start()
        self._scheduler.run()

    def _receive(self) -> None:
        while True:
            frames = self._wire.receive_all()
            if not frames:
                os._exit(0)
            for identifier, kind, body in frames:
                self._route(identifier, kind, body)

    def _route(self, identifier: int, kind: str, body: Any) -> None:
        if kind == "cancel":
            # behind its request, which may still be on its way through the front
            self._front.submit(self._scheduler.cancel, identifier)
        elif kind == "stream":
            self._front.submit(self._guarded, identifier, self._begin, body)
        else:
            work = {"load_adapter": self._load, "unload_adapter": self._unload}[kind]
            self._scheduler.between_steps(lambda: self._guarded(identifier, work, body))

    def _guarded(self, identifier: int, work: Any, body: Any) -> None:
        try:
            work(identifier, body)
        except Refused as error:
            self._fail(identifier, error.message, 400, error.param)
        except Exception as error:
            traceback.print_exc()
            self._fail(identifier, f"The model failed: {type(error).__name__}: {' '.join(str(error).split())[:400]}", 500)

    def _fail(self, identifier: int, message: str, status: int, param: str | None = None) -> None:
        self._wire.send_all([[identifier, "error", {"message": message, "status": status, "param": param}]])

    def _begin(self, identifier: int, body: Mapping[str, Any]) -> None:
        """Read a request; it then waits for the scheduler."""
        adapter = body.get("adapter") or self._default
        if adapter is not None and adapter not in self._adapters:
            raise Refused(f"There is no adapter {adapter!r}; loaded are: {', '.join(self._adapters.names) or 'none'}.", "model")
        schema = schema_of(body)
        matcher = self._grammars.matcher(schema) if schema is not None else None
        prompt = self._prompts.tokens(body)
        room = self._context - len(prompt)
        tools = [tool["function"]["name"] for tool in body.get("tools") or ()]
        self._scheduler.submit(
            Generation(
                identifier,
                prompt,
                Sampling.of(body, self._generation),
                min(body.get("max_tokens") or room, room),
                adapter,
                Detokenizer(self._decode, prompt),
                Stops([body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or ()),
                ToolCalls(tools) if tools and body.get("tool_choice") != "none" else None,
                matcher,
            )
        )

    # --- in the scheduler's thread ---

    def _load(self, identifier: int, body: Mapping[str, Any]) -> None:
        self._adapters.load(body["name"], body["path"])
        self._wire.send_all([[identifier, "result", {"adapters": self._adapters.names}]])

    def _unload(self, identifier: int, body: Mapping[str, Any]) -> None:
        name = body["name"]
        if name not in self._adapters:
            raise Refused(f"There is no adapter {name!r}.", "lora_name")
        if self._scheduler.uses(name):  # its answers end first
            self._scheduler.between_steps(lambda: self._guarded(identifier, self._unload, body))
            return
        self._adapters.unload(name)
        self._wire.send_all([[identifier, "result", {"adapters": self._adapters.names}]])


def _check(model: Any) -> None:
    """Refuse models whose cache is not keys and values of every token."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if not getattr(model, "_supports_cache_class", True) or kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        raise ValueError(f"{config.model_type} has layers other than attention, which this engine does not batch; use vLLM")


def main(descriptor: int) -> None:
    warnings.simplefilter("ignore")
    connection = socket.socket(fileno=descriptor)
    threading.Thread(target=leave_with, args=(connection,), daemon=True).start()
    wire = _Wire(connection)
    spec = wire.receive()
    try:
        server = Server(wire, spec)
    except BaseException as error:
        traceback.print_exc()
        text = error.message if isinstance(error, Refused) else f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        wire.send(0, "failed", {"message": text})
        os._exit(1)
    sys.stdout.flush()
    wire.send(0, "ready", server.info)
    server.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
