"""The process of a GGUF model: llama.cpp's server out of the package `xllamacpp`, with the flags of `llama-server` it is given.

It listens on 127.0.0.1 and answers those who have the key in `LLAMA_API_KEY`.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from typing import Any


def parameters(llama: Any, arguments: list[str]) -> Any:
    """What llama.cpp is to do, from flags of `llama-server`."""
    flags = argparse.ArgumentParser(allow_abbrev=False)
    for flag in ("--model", "--alias", "--host"):
        flags.add_argument(flag, required=True)
    for flag in ("--port", "--ctx-size", "--parallel", "--batch-size"):
        flags.add_argument(flag, type=int, required=True)
    flags.add_argument("--threads", type=int)
    flags.add_argument("--chat-template-file")
    for flag in ("--metrics", "--jinja"):
        flags.add_argument(flag, action="store_true")
    given = flags.parse_args(arguments)
    params = llama.CommonParams()
    params.model.path, params.model_alias = given.model, {given.alias}
    params.hostnames, params.port, params.api_keys = [given.host], given.port, [os.environ["LLAMA_API_KEY"]]
    params.n_ctx, params.n_parallel, params.n_batch = given.ctx_size, given.parallel, given.batch_size
    params.endpoint_metrics, params.use_jinja = given.metrics, given.jinja
    params.endpoint_slots = params.ui = False
    params.verbosity = int(os.environ["LLAMA_LOG_VERBOSITY"])
    params.cache_ram_mib = int(os.environ["LLAMA_ARG_CACHE_RAM"])
    if given.threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.threads
    if given.chat_template_file:
        with open(given.chat_template_file, encoding="utf-8") as file:
            params.chat_template = file.read()
    return params


def main() -> None:
    import xllamacpp  # its names come from a compiled module

    llama: Any = xllamacpp
    params = parameters(llama, sys.argv[1:])
    try:
        server = llama.Server(params)
    except RuntimeError as error:  # what was wrong has been logged
        sys.exit(f"llama.cpp does not load this model. ({error})")
    print(f"{server.listening_address} serves {params.model.path}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
