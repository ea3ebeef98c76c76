"""What live traffic is scored by: the declaration in `smalti.yaml`, assessments on traces, and alerts to webhooks.

The scoring itself is the evals room's, which `app.py` joins to this.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from serving.engines import addresses

if TYPE_CHECKING:
    from serving.tracking.server import MlflowServer


class Monitor(BaseModel):
    """Online scorers of one endpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint: Annotated[str, Field(min_length=1)]
    scorers: list[str] = ["groundedness"]
    """`groundedness`, `faithfulness`, `answerability`, or MODULE:NAME of an `mlflow.genai` scorer."""
    sample: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of calls that are scored."""
    timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds that one scorer may take over one answer."""
    reference: Annotated[int, Field(ge=30, le=5_000)] = 200
    window: Annotated[int, Field(ge=30, le=5_000)] = 200
    """Scored calls of the reference window, which comes first, and of each window that is held against it."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of windows of unchanged traffic that may be called drifted."""
    webhook: str | None = None

    @field_validator("scorers")
    @classmethod
    def _named(cls, scorers: list[str]) -> list[str]:
        for scorer in scorers:
            if scorer not in ("groundedness", "faithfulness", "answerability") and ":" not in scorer:
                raise ValueError(f"{scorer!r} is no scorer: write groundedness, faithfulness, answerability or MODULE:NAME")
        return scorers

    @field_validator("webhook")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "")
        if url is not None and (parts.scheme not in ("http", "https") or not parts.hostname or parts.username):
            raise ValueError("a webhook is an http or https address without credentials")
        return url


def assess(server: MlflowServer | None, request_id: str, name: str, said: Mapping[str, Any]) -> bool:
    """Write what a scorer said as feedback on the answer's trace; False where it is not there yet. Blocking.

    Without a tracking server there is nothing to write to, and that is told as done.
    """
    import httpx

    if server is None:
        return True
    if not server.wait_ready(0):
        return False
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    problem = said.get("error")
    feedback = {"error": {"error_code": "SCORER_ERROR", "error_message": problem}} if problem else {"value": said.get("value")}
    body = {
        "assessment_name": name, "feedback": feedback, "rationale": said.get("rationale") or "", "valid": True,
        "source": {"source_type": said.get("source") or "CODE", "source_id": said.get("source_id") or name},
        "create_time": moment, "last_update_time": moment, "metadata": {"smalti.online": "true"},
    }  # fmt: skip
    with server.sync_client(10) as client:
        try:
            answer = client.post(f"/api/3.0/mlflow/traces/tr-{request_id}/assessments", json={"assessment": body})
        except httpx.HTTPError:
            return False
    return answer.status_code == 200


def alert(hosts: Collection[str], webhook: str, body: Mapping[str, Any]) -> str | None:
    """Post an alert; what went wrong, None where nothing did. Blocking.

    A webhook is reached as an upstream is: at public addresses, or at hosts in `upstream_hosts`; the address that is connected
    to is the one that was checked, and no redirect is followed.
    """
    import httpx

    parts = urlsplit(webhook)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        address = addresses.lookup(host, port, "any" if host in hosts else "public")[0]
    except addresses.Unreachable as error:
        return str(error)
    literal = f"[{address}]" if ":" in address else address
    url = parts._replace(netloc=f"{literal}:{port}").geturl()
    headers = {"host": parts.netloc, "user-agent": "smalti"}
    try:
        with httpx.Client(timeout=10, trust_env=False, verify=ssl.create_default_context(), follow_redirects=False) as client:
            answer = client.post(url, json=dict(body), headers=headers, extensions={"sni_hostname": host})
    except httpx.HTTPError as error:
        return f"{type(error).__name__} at {parts.netloc}"
    return None if answer.is_success else f"{parts.netloc} answered {answer.status_code}"
