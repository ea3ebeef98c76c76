"""Tiny models with random weights, and data that can be learnt, made on the spot."""

from __future__ import annotations

import json
import random
from pathlib import Path

GOOD, BAD = ("good", "great", "fine"), ("bad", "awful", "poor")
FILLER = ("it", "is", "was", "the", "film", "we", "saw", "so", "very", "a", "day")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *FILLER, *map(str, range(10)))


def bert(folder: Path) -> Path:
    """A BERT of two layers, 32 wide, with a vocabulary of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def reviews(file: Path, rows: int, seed: int) -> Path:
    """Rows of `text` and `label`, told apart by one word."""
    draw = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < rows:
        label = draw.choice(("good", "bad"))
        words = [*draw.choices(FILLER, k=draw.randint(3, 9)), draw.choice(GOOD if label == "good" else BAD)]
        draw.shuffle(words)
        found.setdefault(f"{' '.join(words)} {seed}", label)
    file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in found.items()))
    return file


def llama(folder: Path, *, template: bool = False) -> Path:
    """A Llama of two layers, 32 wide, over single characters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = ["<s>", "</s>", "<unk>", *map(chr, range(32, 127)), "\n"]
    plain = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    if template:
        turn = "{% if m.role == 'assistant' %}A:{{ m.content }}{{ eos_token }}{% else %}U:{{ m.content }}\n{% endif %}"
        tokenizer.chat_template = (
            "{{ bos_token }}{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
        )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(characters), num_key_value_heads=2, max_position_embeddings=128, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
