"""The registered form of a trained encoder: an MLflow model from code that reads text and needs ONNX Runtime, not PyTorch.

`model.json` says what it is: `classify` and `auto` give labels, `embed` vectors, `rerank` a number for each pair, `reader` the
words of a text that answer a question. This file is copied into the model and run when it is loaded, where the rooms may not be.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

BATCH = 32


def cleaned(text: str, entities: bool, replace: Sequence[Sequence[str]]) -> str:
    """A text as it was read in training."""
    if entities:
        text = html.unescape(text)
    for pattern, by in replace:
        text = re.sub(pattern, by, text)
    return " ".join(text.split())


def best_span(start: Any, end: Any, first: int, last: int, longest: int) -> tuple[float, int, int]:
    """The span of tokens `first` to `last` (not included) with the highest sum of logits, beyond that of no answer at token 0."""
    import numpy as np

    place = np.arange(last - first)
    size = place[None, :] - place[:, None]
    sums = np.where((size >= 0) & (size < longest), start[first:last, None] + end[None, first:last], -np.inf)
    at = int(sums.argmax())
    one, other = divmod(at, last - first)
    return float(sums.flat[at] - start[0] - end[0]), first + one, first + other


def bounded(question: str, most: int) -> str:
    """As many bytes of a question as leave room for the text."""
    return question.encode()[:most].decode(errors="ignore")


def windows(encoded: Any) -> list[Any]:
    """A pair of texts and what of it did not fit, as windows over the second text."""
    return [encoded, *encoded.overflowing]


def read_span(windows_: Sequence[Any], logits: Sequence[Any], context: str, longest: int) -> dict[str, Any]:
    """The best answer over the windows of a text: its words, how much surer than that there is none, and its place."""
    best: tuple[float, int, int] | None = None
    for window, scores in zip(windows_, logits, strict=True):
        inside = [i for i, sequence in enumerate(window.sequence_ids) if sequence == 1]
        if not inside:
            continue
        score, start, end = best_span(scores[:, 0], scores[:, 1], inside[0], inside[-1] + 1, longest)
        if best is None or score > best[0]:
            best = score, window.offsets[start][0], window.offsets[end][1]
    if best is None or best[0] <= 0:
        return {"answer": "", "score": best[0] if best else 0.0, "start": -1, "end": -1}
    return {"answer": context[best[1] : best[2]], "score": best[0], "start": best[1], "end": best[2]}


class Runner:
    """The exported network, on batches of texts alike in length."""

    def __init__(self, model: str, tokenizer: str) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = max(1, min(4, (os.cpu_count() or 1) // 2))
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(model, sess_options=options, providers=["CPUExecutionProvider"])
        self.names = [each.name for each in self.session.get_inputs()]
        self.tokenizer = Tokenizer.from_file(tokenizer)

    def __call__(self, encoded: Sequence[Any]) -> list[Any]:
        """Logits of each text."""
        import numpy as np

        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
        found: list[Any] = [None] * len(encoded)
        for at in range(0, len(order), BATCH):
            part = order[at : at + BATCH]
            shape = (len(part), max(1, *(len(encoded[i].ids) for i in part), 1))
            given = {name: np.zeros(shape, np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
            for row, i in enumerate(part):
                size = len(encoded[i].ids)
                given["input_ids"][row, :size], given["attention_mask"][row, :size] = encoded[i].ids, 1
                given["token_type_ids"][row, :size] = encoded[i].type_ids
            logits: Any = self.session.run(None, {name: given[name] for name in self.names})[0]
            for row, i in enumerate(part):
                found[i] = logits[row]
        return found


def classify(run: Runner, about: dict[str, Any], rows: Any) -> Any:
    """A frame: `label`, `confidence` and each label's probability."""
    import numpy as np
    import pandas as pd

    names = about["labels"]
    texts = [cleaned(str(text), about["html"], about["replace"]) for text in rows[about["text_column"]]]
    logits = np.array(run(run.tokenizer.encode_batch(texts))).reshape(len(texts), len(names))
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    frame = pd.DataFrame({"label": [names[i] for i in probabilities.argmax(1)], "confidence": probabilities.max(1)})
    return frame.assign(**{f"p_{label}": probabilities[:, i] for i, label in enumerate(names)})


def embed(run: Runner, about: dict[str, Any], given: Any) -> Any:
    """Embeddings as OpenAI gives them."""
    values = [given["input"]] if isinstance(given["input"], str) else given["input"]
    # MLflow's check of the signature makes one cell of a list, and leaves a column as it is
    encoded = run.tokenizer.encode_batch([str(text) for each in values for text in ([each] if isinstance(each, str) else each)])
    data = [{"object": "embedding", "index": i, "embedding": row.tolist()} for i, row in enumerate(run(encoded))]
    tokens = sum(len(each.ids) for each in encoded)
    return {"object": "list", "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def rerank(run: Runner, about: dict[str, Any], rows: Any) -> Any:
    """How well each `document` answers its `query`, 0 to 1."""
    import numpy as np

    pairs = [(str(a), str(b)) for a, b in zip(rows["query"], rows["document"], strict=True)]
    logits = np.array(run(run.tokenizer.encode_batch(pairs)), np.float64).reshape(len(pairs))
    return 1 / (1 + np.exp(-logits))


def reader(run: Runner, about: dict[str, Any], rows: Any) -> Any:
    """A frame: `answer` (empty where the text has none), `score`, and its place in `context`, `start` to `end`."""
    import pandas as pd

    contexts = [str(text) for text in rows["context"]]
    asked = [bounded(str(question), about["question_bytes"]) for question in rows["question"]]
    encoded = run.tokenizer.encode_batch(list(zip(asked, contexts, strict=True)))
    groups = [windows(each) for each in encoded]
    logits = iter(run([window for group in groups for window in group]))
    found = [
        read_span(group, [next(logits) for _ in group], context, about["max_answer"])
        for group, context in zip(groups, contexts, strict=True)
    ]
    return pd.DataFrame(found, columns=["answer", "score", "start", "end"])


def auto(run: Runner | None, about: dict[str, Any], rows: Any) -> Any:
    """As `classify`, of rows of columns; a column of texts is put in as its vectors."""
    import numpy as np
    import pandas as pd

    parts: list[Any] = []
    if about["columns"]:
        parts.append(about["columns_pipeline"].transform(rows[about["columns"]]))
    if run is not None:
        texts = [str(text) for text in rows[about["text_column"]]]
        parts.append(np.array(run(run.tokenizer.encode_batch(texts)), np.float32))
    matrix = np.concatenate([np.asarray(part, np.float32) for part in parts], axis=1)
    probabilities, names = np.asarray(about["estimator"].predict_proba(matrix)), about["labels"]
    frame = pd.DataFrame({"label": [names[i] for i in probabilities.argmax(1)], "confidence": probabilities.max(1)})
    return frame.assign(**{f"p_{label}": probabilities[:, i] for i, label in enumerate(names)})


KINDS = {"auto": auto, "classify": classify, "embed": embed, "rerank": rerank, "reader": reader}


def make() -> Any:
    """The model, as `mlflow.models.set_model` takes it."""
    from mlflow.pyfunc.model import PythonModel, PythonModelContext

    class TextModel(PythonModel):
        def load_context(self, context: PythonModelContext) -> None:
            with open(context.artifacts["about"], encoding="utf-8") as file:
                self.about = json.load(file)
            files = context.artifacts
            self.run: Any = Runner(files["model"], files["tokenizer"]) if "model" in files else None
            if "fitted" in files:
                import joblib

                self.about |= joblib.load(files["fitted"])

        def predict(  # pyright: ignore[reportIncompatibleMethodOverride] - MLflow declares None
            self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
        ) -> Any:
            return KINDS[self.about["kind"]](self.run, self.about, model_input)

    return TextModel()


if __name__ != "finetune.text_model":  # run by MLflow, from the model's folder
    import pandas as pd  # MLflow looks the hints up here
    from mlflow.models import set_model

    set_model(make())
