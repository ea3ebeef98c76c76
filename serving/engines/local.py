"""The engine of a local language model: transformers in a process of its own, many callers in one batch.

The process is watched as a registered model's is: where it crashes, leaks or hangs, its answers end with one clear error and
it is started again; the server and its other endpoints go on.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from governance import choices
from governance.call import Call, CallError, Event, bad_request
from serving.engines.answer import Answer
from serving.engines.choices import several
from serving.engines.chunks import Chunks, chat_body
from serving.engines.messages import text_of
from serving.engines.process import ModelProcess
from serving.engines.supervised import Entrusted
from serving.protocols.request import present

_HUB = ("HF_HOME", "HF_TOKEN", "HF_ENDPOINT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
"""What the process of a local model may see of the environment besides what every model's may."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a model's parts lie.

    Parameters
    ----------
    path: folder, or name on the Hugging Face hub.
    tokenizer: its folder, where that is another one.
    adapter: folder of the LoRA adapter that is served with it.
    """

    path: str
    tokenizer: str | None = None
    adapter: str | None = None


def weights_of(folder: Path) -> Weights | None:
    """The language model within a registered model's folder; None where there is none that transformers loads.

    Found are MLflow's transformers flavor (`model/` and `components/tokenizer/`), and a LoRA adapter in PEFT's format anywhere
    in it, whose base model is what its `adapter_config.json` names in `base_model_name_or_path`.
    """
    for config in sorted(folder.rglob("adapter_config.json")):
        try:
            base = json.loads(config.read_text("utf-8")).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError):
            continue
        if base:
            own = (config.parent / "tokenizer_config.json").is_file()
            return Weights(str(base), str(config.parent) if own else None, str(config.parent))
    tokenizer = folder / "components" / "tokenizer"
    if (folder / "model" / "config.json").is_file() and tokenizer.is_dir():
        return Weights(str(folder / "model"), str(tokenizer))
    return None


class _Process(ModelProcess):
    async def stream(self, body: Any, *, kind: str = "stream") -> AsyncGenerator[Any, None]:
        try:
            async with aclosing(super().stream(body, kind=kind)) as given:
                async for each in given:
                    yield each
        except CallError as error:
            if error.status == 504:  # waiting requests are told that they wait, so silence means that it hangs
                self._kill("It gave no answer in time and was started anew.")
            raise


class LocalModel(Entrusted[ModelProcess]):
    """A local language model; `engine` answers chats, completions and Responses.

    Parameters
    ----------
    weights: what is loaded.
    log: file that gets what the process prints.
    device, dtype: as torch names them; `auto` takes a GPU where there is one, and the precision the model was saved in.
    context: tokens that a prompt and its answer may have together; None: as many as the model was made for.
    max_batch: answers that are written at the same time.
    max_queue: requests that may wait besides; one more is refused at once with 429.
    adapters: LoRA adapters by name.
    threads: of the processor; None: as many as there are cores that others leave (`OMP_NUM_THREADS`, where it is set).
    options: for `ModelProcess`.
    """

    version: str | None = None

    def __init__(
        self,
        weights: Weights,
        log: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        context: int | None = None,
        max_batch: int = 16,
        max_queue: int = 64,
        adapters: Mapping[str, str] | None = None,
        threads: int | None = None,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        loaded = dict(adapters or {})
        if weights.adapter is not None:
            loaded["default"] = weights.adapter
        self._adapters = loaded
        spec = {
            "path": weights.path, "tokenizer": weights.tokenizer, "device": device, "dtype": dtype, "context": context,
            "max_batch": max_batch, "threads": threads, "adapters": loaded,
            "adapter": "default" if weights.adapter is not None else None,
        }  # fmt: skip
        given = {key: os.environ[key] for key in _HUB if key in os.environ} | dict(environment or {})
        process = _Process(
            Path(weights.path),
            log,
            environment=given,
            module="serving.engines.llm.worker",
            spec=spec,
            max_waiting=max_batch + max_queue,
            **options,
        )
        super().__init__(process)
        self._spec, self._most = self.process.spec, max_batch + max_queue

    @property
    def adapters(self) -> list[str]:
        return sorted(self._adapters)

    async def load_adapter(self, name: str, path: str) -> None:
        """Add a LoRA adapter while answers are being written. Raises `CallError`."""
        await self.process.ask("load_adapter", {"name": name, "path": path})
        self._adapters[name] = path
        self._spec["adapters"] = dict(self._adapters)  # for the next start of the process

    async def unload_adapter(self, name: str) -> None:
        """Take a LoRA adapter out, once its answers have ended. Raises `CallError`."""
        await self.process.ask("unload_adapter", {"name": name})
        self._adapters.pop(name, None)
        self._spec["adapters"] = dict(self._adapters)

    # --- answers ---

    def engine(self, call: Call) -> AsyncIterator[Event]:
        return self.answer(call)

    def answer(self, call: Call, adapter: str | None = None) -> AsyncIterator[Event]:
        """Answer a call with this adapter, or with none. Raises `CallError`."""
        if (count := choices.asked(call)) > self._most:
            raise bad_request(f"{count} answers are asked for; this model writes or keeps waiting {self._most} at most.", "n")
        return several(partial(self._answer, adapter=adapter), prompt_once=True)(call)

    async def _answer(self, call: Call, adapter: str | None) -> AsyncIterator[Event]:
        body = request_of(call) | present({"adapter": adapter})
        answer = Answer(call)
        chunks = Chunks(answer, lambda: 0)
        started = False
        async with aclosing(self.process.stream(body)) as given:
            async for chunk in given:
                if not chunk:  # it still waits
                    continue
                if not started:  # a refusal has its own status as long as nothing was sent
                    started = True
                    for event in answer.start():
                        yield event
                for event in chunks.read(chunk):
                    yield event
        if not started:
            raise CallError("The model gave no answer.", status=502)
        for event in chunks.end():
            yield event


def request_of(call: Call) -> dict[str, Any]:
    """A call as a Chat Completions request; the older text completions are a bare `prompt` instead of `messages`."""
    body = chat_body(call.payload)
    if not call.payload.get("raw"):
        return body
    said = call.payload["input"][-1]["content"]
    if not isinstance(said, str) and any(part["type"] != "input_text" for part in said):
        raise bad_request("Field 'prompt' must be text.", "prompt")
    del body["messages"]
    return body | {"prompt": text_of(said)}
