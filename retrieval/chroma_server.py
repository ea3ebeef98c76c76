"""A Chroma server: where it is, whether it is one that can be used, and its collections.

Requests are those of `chromadb`'s own HTTP client, each within a time: `chromadb.HttpClient` makes it without one, and would wait
for ever on a server that takes a request and says nothing.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from retrieval.errors import RetrievalError

log = logging.getLogger("smalti.retrieval")

OLDEST = 1
"""The first major version of Chroma whose collections are as the embedded one's."""
_ACCEPTED = "give one like http://chroma:8000 or https://chroma.example?tenant=NAME&database=NAME"


class ChromaError(RetrievalError):
    """A Chroma server that cannot be used: which, why, what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 503, "TEMPORARILY_UNAVAILABLE")


class ChromaServer:
    """One database of a Chroma server.

    Parameters
    ----------
    url: `http://HOST:PORT` or `https://…`, with a path where a proxy has it there; `?tenant=` and `?database=` name others than
        Chroma's default ones.
    token: sent as `Authorization: Bearer` and as `x-chroma-token`, of which servers and proxies read one or the other.

    Raises
    ------
    ValueError: not such a URL.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        try:
            parts = urlsplit(url)
            port, pairs = parts.port, parse_qsl(parts.query, strict_parsing=bool(parts.query))
        except ValueError as error:
            raise ValueError(f"is no URL ({error}): {_ACCEPTED}") from None
        asked = dict(pairs)
        if parts.username is not None or parts.password is not None:
            raise ValueError("must not hold a user or password: give a token as chroma_token (SMALTI_CHROMA_TOKEN)")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.fragment or asked.keys() - {"tenant", "database"}:
            raise ValueError(f"is no URL of a Chroma server: {_ACCEPTED}")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.url = f"{parts.scheme}://{host}" + (f":{port}" if port else "") + parts.path.rstrip("/")
        self._token = token
        self._tenant = asked.get("tenant", "default_tenant")
        self._database = asked.get("database", "default_database")

    def check(self, seconds: float = 5.0) -> str:
        """Its version. Raises ChromaError, which says what is wrong with it."""
        import httpx

        try:
            with httpx.Client(base_url=self.url, headers=self._headers(), timeout=seconds) as client:
                told = client.get("/api/v2/version")
                if told.status_code == 404:
                    old = client.get("/api/v1/version")
                    told = old if old.is_success else told
                found = self._version(told)
                place = f"/api/v2/tenants/{self._tenant}/databases/{self._database}"
                there = client.get(place)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreached(error) from None
        if there.status_code in (401, 403):
            raise self._refused()
        if there.status_code == 404:
            raise ChromaError(
                f"Chroma at {self.url} has no database {self._database!r} of tenant {self._tenant!r}: make it there"
            )
        if not there.is_success:
            raise ChromaError(f"Chroma at {self.url} answers {there.status_code}: see its log")
        return found

    def told(self, error: BaseException) -> str:
        """An error of a request in words, without the token."""
        import httpx

        if isinstance(error, ChromaError):
            return error.message
        if isinstance(error, httpx.HTTPError):
            return self._unreached(error).message
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return f"Chroma at {self.url} failed ({said.replace(self._token, '***') if self._token else said})"

    def connect(self, seconds: float) -> Collections:
        """Its collections, each request within `seconds`, of which three at most to reach it. Asks nothing yet."""
        return Collections(self.url, self._headers(), self._tenant, self._database, seconds)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}", "X-Chroma-Token": self._token} if self._token else {}

    def _version(self, response: Any) -> str:
        if response.status_code in (401, 403):
            raise self._refused()
        with suppress(ValueError, AttributeError):
            version = response.json() if response.is_success else None
            if isinstance(version, str) and version.split(".")[0].isdecimal():
                if int(version.split(".")[0]) < OLDEST:
                    raise ChromaError(f"Chroma at {self.url} is version {version[:20]}: {OLDEST}.0 or newer is needed")
                return version
        raise ChromaError(
            f"{self.url} (chroma_url) answers {response.status_code} but is no Chroma server: see its address and port"
        )

    def _refused(self) -> ChromaError:
        what = "the token in chroma_token (SMALTI_CHROMA_TOKEN)" if self._token else "requests without a token: set chroma_token"
        return ChromaError(f"Chroma at {self.url} refuses {what}")

    def _unreached(self, error: Exception) -> ChromaError:
        return ChromaError(f"Chroma at {self.url} (chroma_url) does not answer ({type(error).__name__}): see that it runs there")


class Collections:
    """The collections of a Chroma server, as `chromadb`'s client has them. Thread-safe."""

    def __init__(self, url: str, headers: dict[str, str], tenant: str, database: str, seconds: float) -> None:
        # Chroma reads its telemetry's address at import; the setting alone comes too late for some of it.
        os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
        import httpx
        from chromadb.api import ServerAPI
        from chromadb.api.models.Collection import Collection
        from chromadb.config import Settings, System

        settings = Settings(
            anonymized_telemetry=False,
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host=url,
            chroma_server_http_port=80,  # it is asked for one, and goes by the URL's own
            chroma_server_headers=headers,
        )
        self._api: Any = System(settings).instance(ServerAPI)
        self._api._session.timeout = httpx.Timeout(seconds, connect=min(seconds, 3.0))
        self._collection = Collection
        self._place = {"tenant": tenant, "database": database}

    def get(self, name: str) -> Any | None:
        """None where there is none."""
        from chromadb.errors import NotFoundError

        try:
            model = self._api.get_collection(name=name, **self._place)
        except NotFoundError:
            return None
        return self._collection(client=self._api, model=model, embedding_function=None)

    def create(self, name: str, *, metadata: dict[str, Any], configuration: Any, embedding_function: None = None) -> Any:
        """As `chromadb`'s `create_collection`."""
        given = {"metadata": metadata, "configuration": configuration, "get_or_create": False}
        model = self._api.create_collection(name=name, **given, **self._place)
        return self._collection(client=self._api, model=model, embedding_function=embedding_function)

    def delete(self, name: str) -> None:
        """Also where there is none."""
        from chromadb.errors import NotFoundError

        with suppress(NotFoundError):
            self._api.delete_collection(name=name, **self._place)

    def close(self) -> None:
        self._api._session.close()


def damaged(error: BaseException) -> bool:
    """Whether an error is of one collection: the server answered, and said so of it."""
    from chromadb import errors

    of_all = (errors.ChromaAuthError, errors.AuthorizationError, errors.RateLimitError, errors.QuotaError)
    return isinstance(error, errors.ChromaError) and not isinstance(error, of_all)
