"""Into the model registry: a language model in MLflow's transformers flavor, or an adapter in PEFT's format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune.publish import Registered, promote, quiet

TASK = "llm/v1/chat"
_ADAPTER_CODE = Path(__file__).with_name("adapter_model.py")
_PACKAGES = ("mlflow", "torch", "transformers", "accelerate")


def register_language_model(
    folder: Path, name: str, *, adapter: bool, facts: Mapping[str, Any], card: str, score: float | None, margin: float = 0.0
) -> Registered:
    """Log what training wrote to MLflow's active run, and register it.

    Parameters
    ----------
    folder: a model with its tokenizer, or an adapter, as `save_pretrained` writes them.
    facts: hashes and metrics, kept in the model's metadata and the version's tags.
    card: the model card, Markdown.
    score: the held-out loss, negated. The alias moves if the champion has a lower one on the same texts, by `margin` at least.
    """
    import mlflow

    (folder / "README.md").write_text(card, encoding="utf-8")
    offline = {"HF_HUB_OFFLINE": "1"}  # or MLflow looks for the base model's card on the hub
    before = {key: os.environ.get(key) for key in offline}
    os.environ.update(offline)
    try:
        with quiet():
            logged = (_log_adapter if adapter else _log_model)(folder, name, dict(facts))
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    number = str(logged.registered_model_version)
    with quiet():
        client = mlflow.MlflowClient()
        client.update_model_version(name, number, card)
        for key, value in facts.items():
            client.set_model_version_tag(name, number, key, str(value)[:5000])
        judged = None if score is None else lambda incumbent: _score_of(incumbent, facts)
        champion, reason = promote(name, number, score, judged, margin)
        client.set_model_version_tag(name, number, "promotion", reason)
    return Registered(name, number, logged.model_uri, champion, reason)


def _score_of(incumbent: Any, facts: Mapping[str, Any]) -> float:
    """The champion's score, if it was measured on the same texts.

    Raises
    ------
    LookupError: it was not.
    """
    if incumbent.tags.get("eval_sha256") != facts.get("eval_sha256"):
        raise LookupError("other held-out texts")
    return -float(incumbent.tags["loss"])


def _log_model(folder: Path, name: str, facts: dict[str, Any]) -> Any:
    import mlflow
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parts: Any = {"model": AutoModelForCausalLM.from_pretrained(folder), "tokenizer": AutoTokenizer.from_pretrained(folder)}
    return mlflow.transformers.log_model(  # pyright: ignore[reportPrivateImportUsage] - MLflow's own documented name
        parts, name="model", task=TASK, pip_requirements=_requirements(), metadata=facts, registered_model_name=name
    )


def _log_adapter(folder: Path, name: str, facts: dict[str, Any]) -> Any:
    import mlflow

    return mlflow.pyfunc.log_model(
        name="model",
        python_model=str(_ADAPTER_CODE),
        artifacts={"adapter": str(folder)},
        pip_requirements=[*_requirements(), f"peft=={version('peft')}"],
        metadata={**facts, "task": TASK},
        registered_model_name=name,
    )


def _requirements() -> list[str]:
    return [f"{package}=={version(package).partition('+')[0]}" for package in _PACKAGES]
