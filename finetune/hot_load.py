"""A trained adapter into a server that runs: vLLM, or an endpoint of Smalti's own engine, while both go on answering.

Sources: https://docs.vllm.ai/en/latest/features/lora/#dynamically-serving-lora-adapters; Smalti's address takes the same fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.lora_rules import lint_folder
from finetune.runs import RunError

PATIENCE = 120.0


def hot_load(folder: Path, name: str, url: str, *, endpoint: str | None = None, key: str | None = None) -> str:
    """Load an adapter; gives the name of the model that answers with it.

    Parameters
    ----------
    folder: the adapter as `save_pretrained` writes it, where the server can read it.
    url: vLLM's (started with `--enable-lora` and `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`), or, with `endpoint`, Smalti's.
    endpoint: of a local model in Smalti's settings.
    key: sent as a bearer token.

    Raises
    ------
    RunError: there is no adapter, vLLM would not take it, or the server refuses; the message says why.
    """
    import httpx

    folder = folder.resolve()
    if not (folder / "adapter_config.json").is_file():
        raise RunError(
            f"{folder} has no adapter_config.json: method: full, or one that was merged, is served as a model of its own."
        )
    if endpoint is None and not (verdict := lint_folder(folder)).ok:
        raise RunError(f"vLLM does not take this adapter: {'; '.join(verdict.problems)}.")
    base = url.rstrip("/").removesuffix("/v1")
    path = "/v1/load_lora_adapter" if endpoint is None else f"/api/2.0/serving-endpoints/{endpoint}/adapters"
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body: dict[str, Any] = {"lora_name": name, "lora_path": str(folder)}
    try:
        answer = httpx.post(base + path, json=body, headers=headers, timeout=PATIENCE, trust_env=False)
    except httpx.HTTPError as error:
        raise RunError(f"{base} did not answer ({type(error).__name__}). Is it running?") from None
    if answer.status_code >= 400:
        raise RunError(f"{base} refuses with {answer.status_code}: {' '.join(answer.text.split())[:300]}")
    return name if endpoint is None else str(answer.json()["endpoint"])
