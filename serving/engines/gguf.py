"""The engine of a language model in a GGUF file: llama.cpp in a process of its own, many callers in one batch.

llama.cpp comes with the extra `gguf` (`serving.engines.gguf_server` runs it), or is a `llama-server` that is installed already;
both read the same flags.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import mmap
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from governance.call import bad_request
from serving.engines.cores import free_cores
from serving.engines.held import held
from serving.engines.http_process import HttpProcess
from serving.engines.launch import worker_root
from serving.engines.llm import PLAIN_TEMPLATE
from serving.engines.supervised import LoadFailed

CONTEXT = 8192
"""Tokens of prompt and answer, where nothing else is said; a model that was made for fewer takes fewer."""
_MAGIC = b"GGUF"
_TEMPLATE = b"tokenizer.chat_template"
_MAX_HEAD = 64 << 20


class GgufModel(HttpProcess):
    """A model that llama.cpp serves.

    Parameters
    ----------
    path: the GGUF file; of one in several, the first.
    log: file that gets what llama.cpp prints.
    binary: the `llama-server` to run; None: the installed package, or else the one on PATH.
    context: tokens that a prompt and its answer may have together; memory is taken for `max_batch` times as many.
    max_batch: answers that are written at the same time; more wait.
    threads: of the processor; None: as many as there are cores that others leave (`OMP_NUM_THREADS`, where it is set).
    arguments: further flags, as on the command line of `llama-server`; for a `binary` only.
    options: for `HttpProcess`.
    """

    program = "llama.cpp"
    passed: ClassVar[Mapping[str, str]] = {
        "llamacpp:requests_processing": "gauge",
        "llamacpp:requests_deferred": "gauge",
        "llamacpp:prompt_tokens_total": "counter",
        "llamacpp:tokens_predicted_total": "counter",
        "llamacpp:n_decode_total": "counter",
    }
    progress = ("llamacpp:n_decode_total",)

    def __init__(
        self,
        path: str,
        log: Path,
        *,
        binary: Path | None = None,
        context: int | None = None,
        max_batch: int = 4,
        threads: int | None = None,
        arguments: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(path, log, **options)
        self._binary, self._arguments = binary, list(arguments)
        self._context, self._max_batch, self._threads = context or CONTEXT, max_batch, threads

    @property
    def memory(self) -> int:
        return held(self.pid) if self.running else 0

    async def load_adapter(self, name: str, path: str) -> None:
        raise bad_request("llama.cpp takes no adapters while it serves: merge the adapter into the model's file.", "lora_name")

    async def unload_adapter(self, name: str) -> None:
        raise bad_request(f"There is no adapter {name!r}.", "lora_name")

    def _command(self, port: int) -> list[str]:
        command = [*self._executable(), "--model", self.path, "--alias", "base", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--ctx-size", str(self._context * self._max_batch), "--parallel", str(self._max_batch)]
        command += ["--batch-size", "512", "--metrics", "--jinja"]
        if threads := self._threads or free_cores(os.environ) or int(os.environ.get("OMP_NUM_THREADS", 0)):
            command += ["--threads", str(threads)]
        if not _has_template(Path(self.path)):
            command += ["--chat-template-file", str(PLAIN_TEMPLATE)]
        return [*command, *self._arguments]

    def _executable(self) -> list[str]:
        if self._binary is not None:
            if not self._binary.exists():
                raise LoadFailed(f"There is no llama-server at {self._binary}.")
            return [str(self._binary)]
        if find_spec("xllamacpp") is not None:
            return [sys.executable, "-m", "serving.engines.gguf_server"]
        if found := shutil.which("llama-server"):
            return [found]
        raise LoadFailed("llama.cpp is not installed. Install it: pip install 'smalti[gguf]', or put llama-server on PATH.")

    def _environment(self) -> dict[str, str]:
        # llama-server reads the last two: it keeps no prompts of ended answers in memory, and tells of warnings only
        return {
            "PYTHONPATH": str(worker_root(sys.executable)), "LLAMA_API_KEY": self._key,
            "LLAMA_ARG_CACHE_RAM": "0", "LLAMA_LOG_VERBOSITY": "2",
        }  # fmt: skip


def _has_template(path: Path) -> bool:
    """Whether the model has a chat template of its own. Raises `LoadFailed` where there is no such model."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            if view[:4] == _MAGIC:
                return view.find(_TEMPLATE, 0, _MAX_HEAD) >= 0
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is empty'}.") from None
    raise LoadFailed(f"{path} is no GGUF file. Convert the model with llama.cpp's convert_hf_to_gguf.py, or get it in GGUF.")
