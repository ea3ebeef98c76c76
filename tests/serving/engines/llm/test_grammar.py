"""Answers held to schemas of odd names, by a vocabulary that spells most characters as bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving.engines.rows import Refused


@pytest.fixture(scope="module")
def grammars() -> Any:
    pytest.importorskip("llguidance")
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    from serving.engines.llm.grammar import Grammars

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)), "▁", *'{}[]":,abtruefls\\', "▁b"]
    words = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[("▁", "b")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return Grammars(made, len(words), [words["</s>"]]), made


@pytest.mark.parametrize("name", ["a", "a b", "ключ b", 'ключ "', "日本 \\", " lead", "a\nb"])
def test_a_name_that_must_be_written(grammars: Any, name: str) -> None:
    import torch

    made, tokenizer = grammars
    schema = {"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name], "additionalProperties": False}
    matcher, taken, rest = made.matcher(schema), [], torch.Generator().manual_seed(0)
    for _ in range(80):
        logits = torch.randn(len(tokenizer), generator=rest)
        matcher.allow(logits)
        taken.append(int(logits.argmax()))
        if matcher.take(taken[-1]):
            break
    pieces = [piece for piece in tokenizer.convert_ids_to_tokens(taken) if piece != "</s>"]
    written = b"".join(
        bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else piece.replace("▁", " ").encode() for piece in pieces
    )
    assert list(json.loads(written)) == [name]


def test_a_schema_that_cannot_be_followed_says_why(grammars: Any) -> None:
    wrong: dict[str, dict[str, str]] = {
        "wat": {"type": "wat"},
        "none": {"$ref": "#/$defs/none"},
        "regex": {"type": "string", "pattern": "(["},
    }
    for why, schema in wrong.items():
        with pytest.raises(Refused, match=why) as refused:
            grammars[0].matcher(schema)
        assert "llguidance" not in str(refused.value)  # of the grammar around it nobody has heard
        assert "%json" not in str(refused.value)
