"""Saves one small model of each MLflow flavor, loads it as its worker does, and prints what it answers as JSON.

`python tests/serving/flavors.py FOLDER`. Apart from the tests, as MLflow warns of much.
"""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

FOLDER = Path(sys.argv[-1])
ROWS = pd.DataFrame({"a": [1.0, 2.0, 3.0, 4.0], "b": [2.0, 1.0, 4.0, 3.0]})
TYPED = """
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

class Loud(PythonModel):
    def predict(self, model_input: list[str]) -> list[str]:
        return [text.upper() for text in model_input]

set_model(Loud())
"""
CHAIN = """
from langchain_core.runnables import RunnableLambda
from mlflow.models import set_model

set_model(RunnableLambda(lambda given: f"{given['word']} is a word"))
"""
PROMPT = """
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda
from mlflow.models import set_model

set_model(PromptTemplate.from_template("{word} in {tone}") | RunnableLambda(lambda prompt: prompt.text))
"""
TELLER = """
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

class Teller(PythonModel):
    def predict(self, context, model_input, params=None):
        return ["whole"] * len(model_input)

    def predict_stream(self, context, model_input, params=None):
        yield {"given": model_input, "params": params}
        yield "and more"

set_model(Teller())
"""


def bert(folder: Path) -> None:
    """A Bert of two layers with random weights, and a tokenizer of five words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(words), **small)
    for name, model in (("classifier", BertForSequenceClassification(config)), ("encoder", BertModel(config))):
        model.save_pretrained(folder / name)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32)
        fast.save_pretrained(folder / name)


def save_all() -> None:
    import mlflow
    from lightgbm import LGBMRegressor
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types.schema import ColSpec, Schema, TensorSpec
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as parts
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from transformers import pipeline
    from xgboost import XGBRegressor

    target = ROWS["a"] + 10 * ROWS["b"]
    columns = infer_signature(ROWS, target)
    text = ModelSignature(Schema([ColSpec("string")]), Schema([ColSpec("string")]))

    def save(flavor: Any, model: Any, name: str, **given: Any) -> None:
        flavor.save_model(model, path=FOLDER / name, pip_requirements=["mlflow"], **given)

    scaled = make_pipeline(ColumnTransformer([("scale", StandardScaler(), ["b", "a"])]), LinearRegression()).fit(ROWS, target)
    save(mlflow.sklearn, scaled, "sklearn", signature=columns)
    likely = LogisticRegression().fit(ROWS, [0, 1, 0, 1])
    save(mlflow.sklearn, likely, "proba", signature=columns, pyfunc_predict_fn="predict_proba")
    save(mlflow.xgboost, XGBRegressor(n_estimators=5).fit(ROWS, target), "xgboost", signature=columns)
    light = LGBMRegressor(n_estimators=5, min_child_samples=1, verbose=-1).fit(ROWS, target)
    save(mlflow.lightgbm, light, "lightgbm", signature=columns)
    tensors = ModelSignature(Schema([TensorSpec(np.dtype("float64"), (-1, 2))]))
    save(mlflow.sklearn, LinearRegression().fit(ROWS.to_numpy(), target), "tensor", signature=tensors)
    bert(FOLDER / "bert")
    classify = pipeline("text-classification", model=str(FOLDER / "bert" / "classifier"))
    save(mlflow.transformers, classify, "transformers", signature=text)
    encoder = parts.Transformer(str(FOLDER / "bert" / "encoder"))
    encode = SentenceTransformer(modules=[encoder, parts.Pooling(16)])
    vectors = ModelSignature(Schema([ColSpec("string")]), Schema([TensorSpec(np.dtype("float32"), (-1, 16))]))
    save(mlflow.sentence_transformers, encode, "sentence_transformers", signature=vectors, metadata={"task": "llm/v1/embeddings"})
    for name, code in (("typed", TYPED), ("langchain", CHAIN), ("prompt", PROMPT), ("teller", TELLER)):
        (FOLDER / f"{name}.py").write_text(code)
    mlflow.pyfunc.save_model(FOLDER / "typed", python_model=str(FOLDER / "typed.py"), pip_requirements=["mlflow"])
    if find_spec("langchain"):
        save(mlflow.langchain, str(FOLDER / "langchain.py"), "langchain")
        save(mlflow.langchain, str(FOLDER / "prompt.py"), "prompt")
    word = infer_signature(pd.DataFrame({"word": ["good"]}), ["whole"], {"loud": True})
    for name, signature in (("teller", word), ("free", None)):
        how: dict[str, Any] = {"python_model": str(FOLDER / "teller.py"), "pip_requirements": ["mlflow"], "signature": signature}
        mlflow.pyfunc.save_model(FOLDER / name, **how)


TABLES: list[dict[str, Any]] = [
    {"dataframe_split": {"columns": ["a", "b"], "data": [[1.0, 2.0]]}},
    {"dataframe_split": {"columns": ["b", "a"], "data": [[2.0, 1.0]]}},
    {"dataframe_records": [{"a": 1.0, "b": 2.0}]},
    {"inputs": {"a": [1.0], "b": [2.0]}},
    {"instances": [[1.0, 2.0]]},
]
TEXTS: list[dict[str, Any]] = [{"inputs": ["good", "bad"]}, {"instances": ["good", "bad"]}]
ASKED: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(("sklearn", "proba", "xgboost", "lightgbm"), TABLES),
    "tensor": [{"inputs": [[1.0, 2.0]]}, {"instances": [[1.0, 2.0]]}, {"instances": [[1.0, 2.0], [3.0]]}, {"instances": [[1.0]]}],
    "transformers": TEXTS,
    "sentence_transformers": TEXTS,
    "typed": [*TEXTS, {"inputs": [1]}],
    "langchain": [{"inputs": {"word": "good"}}, {"instances": [{"word": "good"}]}, {"dataframe_records": [{"word": "good"}]}],
    "prompt": [{"inputs": {"word": "good"}}, {"dataframe_records": [{"word": "good", "tone": "red"}, {"tone": "red"}]}],
}
STREAMED: dict[str, list[dict[str, Any]]] = {
    "teller": [
        {"dataframe_split": {"columns": ["word"], "data": [["good"]]}, "params": {"loud": False}},
        {"dataframe_records": [{"word": "good"}, {"word": "bad"}]},
        {"inputs": {"wird": ["good"]}},
    ],
    "free": [{"inputs": {"word": "good"}}, {"instances": ["good"]}, {"dataframe_records": [{"word": "good"}]}],
    "prompt": [{"inputs": {"word": "good", "tone": "red"}}, {"dataframe_records": [{"word": "good"}]}],
    "sklearn": [{"dataframe_records": [{"a": 1.0, "b": 2.0}]}],
}


def answers() -> dict[str, Any]:
    """What each model answers to each request alone, to all of them at once, and what it is."""
    from serving.engines import replies
    from serving.engines.worker import Model

    told: dict[str, Any] = {}
    for name in {**ASKED, **STREAMED}:
        bodies = ASKED.get(name, [])
        if not (FOLDER / name).exists():
            continue
        model = Model(str(FOLDER / name))

        def given(results: list[Any]) -> list[Any]:
            return [replies.told(each) if isinstance(each, Exception) else each for each in results]

        alone = [result for body in bodies for result in given(model.rows([body]))]
        together = given(model.rows(bodies)) if model.rowwise else None
        streamed = [_streamed(model, body) for body in STREAMED.get(name, ())]
        told[name] = {"alone": alone, "together": together, "arrays": model._arrays, "streamed": streamed}
    return told


def _streamed(model: Any, body: dict[str, Any]) -> Any:
    from serving.engines import replies

    try:
        return list(model.chunks(body))
    except Exception as error:
        return replies.told(error)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from mlflow.utils import requirements_utils

    requirements_utils._MODULES_TO_PACKAGES = {}  # else every file of every package is listed, for a warning
    save_all()
    import orjson

    from serving.engines.replies import plain

    print("\n" + orjson.dumps(answers(), default=plain, option=orjson.OPT_SERIALIZE_NUMPY).decode())
