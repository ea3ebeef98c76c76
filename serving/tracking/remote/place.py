"""Where the MLflow server of `mlflow_url` is, and what it is shown: read from settings, without a look at the server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from serving.settings import Settings


@dataclass(frozen=True, slots=True)
class Place:
    """Where the tracking server is, and what it is shown.

    Parameters
    ----------
    url: without credentials.
    user, password: of HTTP's basic authentication; both None with a token.
    token: a bearer token.
    """

    url: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: Settings, environment: Mapping[str, str] = os.environ) -> Place | None:
        """The place that settings name; None where this server has its own."""
        if settings.mlflow_url is None:
            return None
        parts = urlsplit(settings.mlflow_url)
        host = parts.netloc.rpartition("@")[2]
        url = f"{parts.scheme}://{host}{parts.path.rstrip('/')}"
        if parts.username:
            return cls(url, unquote(parts.username), unquote(parts.password or ""))
        user, password = (environment.get(f"MLFLOW_TRACKING_{each}") for each in ("USERNAME", "PASSWORD"))
        if user and password:
            return cls(url, user, password)
        return cls(url, token=environment.get("MLFLOW_TRACKING_TOKEN"))

    def environment(self) -> dict[str, str]:
        """The variables by which MLflow's own client, in this process and those that it starts, shows the same."""
        if self.user is not None:
            return {"MLFLOW_TRACKING_USERNAME": self.user, "MLFLOW_TRACKING_PASSWORD": self.password or ""}
        return {"MLFLOW_TRACKING_TOKEN": self.token} if self.token else {}


def tracking_uri(settings: Settings, home: Path) -> str:
    """Where MLflow's own client in this process, and in those that it starts, reaches what the server tracks: the one place that
    knows. Credentials of an `mlflow_url` are put where that client looks for them, the environment."""
    place = Place.of(settings)
    if place is None:
        return f"sqlite:///{home / 'mlflow.db'}"
    os.environ.update(place.environment())
    return place.url
