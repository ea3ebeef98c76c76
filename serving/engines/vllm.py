"""The engine of a language model in vLLM: a process of its own, in an environment of its own. vLLM is never imported here.

Sources: https://docs.vllm.ai/en/latest/cli/serve/, https://docs.vllm.ai/en/latest/features/lora/ and
https://docs.vllm.ai/en/latest/usage/metrics/
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import httpx

from governance.call import CallError, bad_request, unavailable
from serving.engines.http_process import HttpProcess
from serving.engines.llm import PLAIN_TEMPLATE
from serving.engines.supervised import LoadFailed

MODULE = ("-m", "vllm.entrypoints.openai.api_server")


class VllmModel(HttpProcess):
    """A model that vLLM serves.

    Parameters
    ----------
    path: folder, or name on the Hugging Face hub.
    log: file that gets what vLLM prints.
    python: interpreter of the environment that vLLM is installed in.
    module: what it runs; another one in tests.
    dtype, context, tensor_parallel: `--dtype`, `--max-model-len`, `--tensor-parallel-size`.
    adapters: LoRA adapters by name; more may be loaded later.
    arguments: further flags, as on vLLM's own command line.
    options: for `HttpProcess`.
    """

    program = "vLLM"
    passed: ClassVar[Mapping[str, str]] = {
        "vllm:num_requests_running": "gauge",
        "vllm:num_requests_waiting": "gauge",
        "vllm:kv_cache_usage_perc": "gauge",
        "vllm:prompt_tokens_total": "counter",
        "vllm:generation_tokens_total": "counter",
        "vllm:num_preemptions_total": "counter",
        "vllm:prefix_cache_queries_total": "counter",
        "vllm:prefix_cache_hits_total": "counter",
    }
    progress = ("vllm:iteration_tokens_total_count", "vllm:generation_tokens_total", "vllm:prompt_tokens_total")

    def __init__(
        self,
        path: str,
        log: Path,
        *,
        python: Path,
        module: Sequence[str] = MODULE,
        dtype: str = "auto",
        context: int | None = None,
        tensor_parallel: int = 1,
        adapters: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(path, log, **options)
        self._python, self._module, self._arguments = python, tuple(module), list(arguments)
        self._dtype, self._context, self._parallel = dtype, context, tensor_parallel
        self._adapters = dict(adapters or {})

    @property
    def adapters(self) -> list[str]:
        return sorted(self._adapters)

    async def load_adapter(self, name: str, path: str) -> None:
        """Add a LoRA adapter while answers are being written. Raises `CallError`."""
        if name in self._adapters:
            raise bad_request(f"There is an adapter {name!r} already: unload it first.", "lora_name")
        await self._up()
        await self._ask("/load_lora_adapter", {"lora_name": name, "lora_path": path})
        self._adapters[name] = path

    async def unload_adapter(self, name: str) -> None:
        """Take a LoRA adapter out. Raises `CallError`."""
        if name not in self._adapters:
            raise bad_request(f"There is no adapter {name!r}.", "lora_name")
        await self._up()
        await self._ask("/unload_lora_adapter", {"lora_name": name})
        del self._adapters[name]

    async def _ask(self, path: str, body: Any) -> None:
        async with self._client(60) as client:
            try:
                response = await client.post(self._base + path, json=body)
            except httpx.HTTPError as error:
                raise unavailable(f"vLLM did not answer ({type(error).__name__}). Send the request again.", status=502) from None
        if response.status_code >= 400:
            said = " ".join(response.text.split())[:300]
            raise CallError(f"vLLM refuses: {said}", status=400, code="BAD_REQUEST")

    async def _prepare(self) -> None:
        for name, path in self._adapters.items():
            try:
                await self._ask("/load_lora_adapter", {"lora_name": name, "lora_path": path})
            except CallError as error:
                raise LoadFailed(f"adapter {name}: {error.message}") from None

    def _command(self, port: int) -> list[str]:
        if not self._python.exists():
            raise LoadFailed(f"There is no vLLM at {self._python}. Install it: smalti engines install vllm")
        command = [str(self._python), *self._module, "--model", self.path, "--host", "127.0.0.1", "--port", str(port)]
        command += ["--served-model-name", "base", "--dtype", self._dtype, "--tensor-parallel-size", str(self._parallel)]
        command += ["--shutdown-timeout", f"{self._shutdown_timeout:g}"]
        if self._context:
            command += ["--max-model-len", str(self._context)]
        if _has_no_template(Path(self.path)):
            command += ["--chat-template", str(PLAIN_TEMPLATE)]
        return [*command, *self._arguments]

    def _environment(self) -> dict[str, str]:
        own = {key: value for key, value in os.environ.items() if key.startswith("VLLM_")}
        own |= {"VLLM_API_KEY": self._key, "VLLM_NO_USAGE_STATS": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
        return own


def _has_no_template(folder: Path) -> bool:
    """Whether a model's folder has a tokenizer without a chat template; a model of the hub is left to vLLM."""
    config = folder / "tokenizer_config.json"
    if not config.is_file() or (folder / "chat_template.jinja").exists():
        return False
    return '"chat_template"' not in config.read_text("utf-8")
