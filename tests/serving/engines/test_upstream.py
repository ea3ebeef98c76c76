from __future__ import annotations

from typing import Any

import pytest

from serving.engines.upstream import ModelSettingError, parse_chat_model


@pytest.mark.parametrize(
    ("setting", "env", "url", "model", "key"),
    [
        ("openai:gpt-x", {"OPENAI_API_KEY": "k"}, "https://api.openai.com/v1", "gpt-x", "k"),
        ("databricks:dbrx", {"DATABRICKS_HOST": "a.b", "DATABRICKS_TOKEN": "t"}, "https://a.b/serving-endpoints", "dbrx", "t"),
        ("vllm:org/model", {}, "http://127.0.0.1:8001/v1", "org/model", None),
        ("vllm:http://gpu:9/v1", {"SMALTI_CHAT_API_KEY": "s"}, "http://gpu:9/v1", None, "s"),
        ("ollama:qwen3:4b", {}, "http://127.0.0.1:11434/v1", "qwen3:4b", None),
        ("ollama:m", {"OLLAMA_HOST": "box:1"}, "http://box:1/v1", "m", None),
        ("http://h:1/v1/", {"SMALTI_CHAT_API_KEY": "s"}, "http://h:1/v1", None, "s"),
        ("mine", {"SMALTI_CHAT_BASE_URL": "http://h:1/v1"}, "http://h:1/v1", "mine", None),
        (
            "org/m:tag",
            {"SMALTI_CHAT_BASE_URL": "http://h:1/v1", "OPENAI_API_KEY": "never sent"},
            "http://h:1/v1",
            "org/m:tag",
            None,
        ),
        (None, {"SMALTI_CHAT_BASE_URL": "http://h:1/v1"}, "http://h:1/v1", None, None),
        ("vllm:m", {"SMALTI_CHAT_BASE_URL": "http://gpu:9/v1", "SMALTI_CHAT_API_KEY": "s"}, "http://gpu:9/v1", "m", "s"),
    ],
)
def test_settings(setting: str | None, env: dict[str, str], url: str, model: str | None, key: str | None) -> None:
    found: Any = parse_chat_model(setting, env)
    assert (found.base_url, found.model, found.key) == (url, model, key)
    assert "never sent" not in repr(found)
    assert key is None or f"{key!r}" not in repr(found)


def test_nothing_set_is_no_model() -> None:
    assert parse_chat_model(None, {}) is None
    assert parse_chat_model(" ", {}) is None


@pytest.mark.parametrize(
    ("setting", "env", "says"),
    [
        ("openai:gpt-x", {}, "OPENAI_API_KEY"),
        ("databricks:m", {}, "DATABRICKS_HOST"),
        ("openai:", {}, "names no model"),
        ("gpt-x", {}, "names no known provider"),
        ("http://user:pw@h/v1", {}, "no credentials"),
        ("m", {"SMALTI_CHAT_BASE_URL": "ftp://h"}, "not a base URL"),
    ],
)
def test_settings_that_cannot_be_used(setting: str, env: dict[str, str], says: str) -> None:
    with pytest.raises(ModelSettingError, match=says):
        parse_chat_model(setting, env)
