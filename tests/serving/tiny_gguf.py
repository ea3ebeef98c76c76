"""A tiny Llama of transformers as a GGUF file, its weights in full precision: what llama.cpp's own converter writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def convert(folder: Path, file: Path, *, template: str | None = None) -> Path:
    """Write the Llama with a byte-level tokenizer in `folder` to `file`."""
    config = json.loads((folder / "config.json").read_text())
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    _add_tokenizer(writer, folder, config)
    if template:
        writer.add_chat_template(template)
    for name, weight in load_file(folder / "model.safetensors").items():
        writer.add_tensor(*_tensor(name.removesuffix(".weight"), weight, heads, key_heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    told = json.loads((folder / "tokenizer.json").read_text())
    special = {token["id"] for token in told["added_tokens"]}
    tokens = sorted(told["model"]["vocab"], key=told["model"]["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    kinds = gguf.TokenType
    writer.add_token_types([kinds.CONTROL if number in special else kinds.NORMAL for number in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in told["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(True)


def _tensor(name: str, weight: Any, heads: int, key_heads: int) -> tuple[str, Any]:
    if name in _OUTER:
        return _OUTER[name] + ".weight", weight
    _, _, block, part = name.split(".", 3)
    if part in ("self_attn.q_proj", "self_attn.k_proj"):  # the two halves of a head's rotation lie side by side there
        count = heads if part == "self_attn.q_proj" else key_heads
        rows = weight.shape[0] // count // 2
        weight = np.ascontiguousarray(weight.reshape(count, 2, rows, -1).swapaxes(1, 2).reshape(weight.shape))
    return f"blk.{block}.{_NAMES[part]}.weight", weight
