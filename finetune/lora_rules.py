"""What vLLM asks of a LoRA adapter. One that does not keep to it is merged into its base model instead.

Source: https://docs.vllm.ai/en/latest/features/lora/ and `PEFTHelper.validate_legal` in vllm/lora/peft_helper.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be; 16 where it is not given."""
DEFAULT_RANK = 16
LAYERS = {
    *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj"),
    *("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "fc1", "fc2", "fc_in", "fc_out", "c_attn", "c_proj", "c_fc"),
    *("w1", "w2", "w3", "wqkv", "wo", "in_proj", "x_proj", "dt_proj", "linear_qkv", "linear_proj", "embed_tokens", "lm_head"),
}
"""Layers that vLLM's models adapt, by the last part of their names."""


@dataclass(frozen=True)
class Verdict:
    """Whether vLLM takes an adapter as it is."""

    problems: tuple[str, ...]
    """Why it does not; each names the key of `adapter_config.json`."""
    arguments: tuple[str, ...]
    """What vLLM's command line needs for it."""

    @property
    def ok(self) -> bool:
        return not self.problems


def lint(config: Mapping[str, Any]) -> Verdict:
    """Hold an `adapter_config.json` against vLLM's rules."""
    problems: list[str] = []
    ranks = [int(config.get("r") or 0), *(int(rank) for rank in (config.get("rank_pattern") or {}).values())]
    rank = max(ranks)
    if not 1 <= rank <= RANKS[-1]:
        problems.append(f"r: {rank} is not from 1 to {RANKS[-1]}")
    if config.get("use_dora"):
        problems.append("use_dora: vLLM has no DoRA")
    if config.get("modules_to_save"):
        problems.append(f"modules_to_save: {', '.join(config['modules_to_save'])}; vLLM takes adapters alone, no whole layers")
    if (bias := config.get("bias") or "none") != "none":
        problems.append(f"bias: {bias}; vLLM takes none")
    if config.get("layer_replication"):
        problems.append("layer_replication: vLLM runs the base model's own layers")
    kind = config.get("peft_type") or "LORA"
    if (kind := str(getattr(kind, "value", kind))) != "LORA":  # PEFT's own configurations hold an enumeration
        problems.append(f"peft_type: {kind}; vLLM takes LORA")
    targets = config.get("target_modules") or ()
    if isinstance(targets, str):
        problems.append(f"target_modules: {targets!r} is a pattern; name the layers")
    elif unknown := sorted({str(each).rpartition(".")[2] for each in targets} - LAYERS):
        problems.append(f"target_modules: vLLM adapts no {', '.join(unknown)}")
    wanted = next((allowed for allowed in RANKS if allowed >= rank), RANKS[-1])
    arguments = ["--enable-lora"] + (["--max-lora-rank", str(wanted)] if wanted > DEFAULT_RANK else [])
    return Verdict(tuple(problems), tuple(arguments))


def lint_folder(folder: Path) -> Verdict:
    """As `lint`, of an adapter as `save_pretrained` writes it.

    Raises
    ------
    OSError, ValueError: it has no readable `adapter_config.json`.
    """
    return lint(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")))
