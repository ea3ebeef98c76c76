"""Fixtures every room's tests share."""

from __future__ import annotations

import os

import pytest

os.environ.update(HF_HUB_OFFLINE="1", ANONYMIZED_TELEMETRY="false", MLFLOW_DISABLE_TELEMETRY="true", LANGSMITH_TRACING="false")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
