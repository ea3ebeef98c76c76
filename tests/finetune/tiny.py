"""Tiny models with random weights, and data that can be learnt, made on the spot."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

from finetune.runs import Runs, TrainingRun
from tests.live import mlflow_store

GOOD, BAD = ("good", "great", "fine"), ("bad", "awful", "poor")
FILLER = ("it", "is", "was", "the", "film", "we", "saw", "so", "very", "a", "day")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, *FILLER, *map(str, range(10)))

_BERT = {
    "vocab_size": len(WORDS), "max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64,
}  # fmt: skip


def bert(folder: Path, **sizes: int) -> Path:
    """A BERT of two layers, 32 wide, with a vocabulary of whole words; `sizes` are its configuration's."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    BertModel(BertConfig(**{**_BERT, **sizes}), add_pooling_layer=False).save_pretrained(folder)
    _words(folder)
    return folder


def bert_unbuilt(folder: Path) -> Path:
    """The same, with other weights; imports no torch, which takes seconds."""
    import numpy as np
    from safetensors.numpy import save_file

    draw, wide, inner = np.random.default_rng(0), _BERT["hidden_size"], _BERT["intermediate_size"]
    tables = {"word": _BERT["vocab_size"], "position": _BERT["max_position_embeddings"], "token_type": 2}
    shapes = {f"embeddings.{name}_embeddings": (rows, wide) for name, rows in tables.items()}
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{i}" for i in range(_BERT["num_hidden_layers"])):
        shapes |= {f"{layer}.attention.self.{name}": (wide, wide) for name in ("query", "key", "value")}
        shapes |= {f"{layer}.attention.output.dense": (wide, wide), f"{layer}.intermediate.dense": (inner, wide)}
        shapes |= {f"{layer}.output.dense": (wide, inner)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    weights = {f"{name}.weight": draw.normal(0, 0.02, shape).astype("float32") for name, shape in shapes.items()}
    weights |= {f"{name}.bias": np.zeros(shape[0], "float32") for name, shape in shapes.items() if "_embeddings" not in name}
    weights |= {f"{name}.weight": np.ones(wide, "float32") for name in norms}
    weights |= {f"{name}.bias": np.zeros(wide, "float32") for name in norms}
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"], **_BERT}))
    _words(folder)
    return folder


def _words(folder: Path) -> None:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))


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


def llama(folder: Path, *, template: bool = False, width: int = 32, layers: int = 2) -> Path:
    """A small Llama over single characters."""
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
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(characters), num_key_value_heads=2, max_position_embeddings=128, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


PLACES = ("day", "film", "we", "saw", *map(str, range(10)))


def pairs(file: Path, rows: int, seed: int) -> Path:
    """Rows of `query` and `positive` that have a word or two in common, told apart from each other by them."""
    draw = random.Random(seed)
    keys = [f"{a} {b}" for a in PLACES for b in (*GOOD, *BAD)]
    draw.shuffle(keys)
    found = [
        {"query": f"was it {key}", "positive": f"{' '.join(draw.choices(FILLER[:4], k=3))} {' '.join(reversed(key.split()))}"}
        for key in keys[:rows]
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return file


def ranked(file: Path, rows: int, seed: int) -> Path:
    """Rows of `query`, `positive` and `negative`, of which the good one is right."""
    draw = random.Random(seed)

    def text(words: tuple[str, ...]) -> str:
        return " ".join([*draw.choices(FILLER, k=5), draw.choice(words), *draw.choices(FILLER, k=3), str(seed)])

    found = [
        {"query": f"was it {draw.choice(PLACES)} {seed} {i}", "positive": text(GOOD), "negative": [text(BAD)]}
        for i in range(rows)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return file


def questions(file: Path, rows: int, seed: int) -> Path:
    """Rows of `question`, `context` and `answer`: the word that tells good from bad, or none."""
    draw = random.Random(seed)
    found: dict[str, dict[str, str]] = {}
    while len(found) < rows:
        words, answer = draw.choices(FILLER, k=draw.randint(4, 9)), draw.choice((*GOOD, *BAD, ""))
        if answer:
            words.insert(draw.randrange(len(words) + 1), answer)
        found[" ".join(words)] = {"question": "was it so", "context": " ".join([*words, str(seed)]), "answer": answer}
    file.write_text("".join(json.dumps(row) + "\n" for row in found.values()))
    return file


def spawned_here(run: TrainingRun) -> None:
    """In the place of `TrainingRun._spawn`: the run is done at once, in this process, which has imported what it needs."""
    from finetune.perform import perform

    with run.hold(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        perform(run)


def trained(recipe: Any, root: Path, **more: Any) -> TrainingRun:
    """A run done here, without a process of its own, which costs the seconds that its imports take."""
    from finetune.job import execute

    run = Runs(root / "finetune").create(recipe, tracking_uri=tracking(root), **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.set_state(status="COMPLETED", result=execute(run))
    return run


def tracking(root: Path) -> str:
    """A folder's MLflow database, made if it is not there."""
    if not (root / "mlflow.db").exists():
        mlflow_store(root)
    return f"sqlite:///{root / 'mlflow.db'}"
