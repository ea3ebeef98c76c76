"""The engine of an external model: any server that speaks OpenAI's Chat Completions, Completions or Embeddings, or Anthropic's
Messages.

Its address and key come from settings alone, never from a request. Texts are always streamed from the upstream, so that one
that stops in the middle is noticed at once, whether or not the client streams.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from governance.call import Call, CallError, Event, misconfigured, unavailable
from serving.engines import anthropic
from serving.engines.answer import Answer
from serving.engines.choices import several
from serving.engines.chunks import Chunks, chat_body, prompt_body
from serving.engines.pool import Answer as Response
from serving.engines.transport import BREAKS, MAX_VECTORS, Timeouts, Transport
from serving.engines.upstream import ModelSettingError, Upstream, parse_chat_model
from serving.protocols.request import present


class Reader(Protocol):
    """Turns an upstream's chunks into an answer's events."""

    @property
    def finish(self) -> str | None:
        """Why the answer ended; None as long as it has not."""
        ...

    def read(self, chunk: Mapping[str, Any]) -> list[Event]: ...

    def end(self) -> list[Event]: ...


class ExternalChat:
    """A model behind an upstream; `run` is its engine, whatever the task. Close it with `aclose`.

    Parameters
    ----------
    own: whether it is a model of this server's, whose answers name the endpoint instead of what the upstream calls it.
    """

    def __init__(
        self, upstream: Upstream, *, timeouts: Timeouts | None = None, max_connections: int = 256, own: bool = False
    ) -> None:
        self.upstream, self._own = upstream, own
        self._http = Transport(upstream, timeouts=timeouts, max_connections=max_connections)
        self._model = upstream.model
        self._usage_option = True
        self._several = several(self._one, prompt_once=own)
        self._path, self._reader = _WIRES.get(upstream.provider) or _TASKS[upstream.task]

    async def aclose(self) -> None:
        await self._http.aclose()

    def run(self, call: Call) -> AsyncIterator[Event]:
        """Answer a call; the first event comes once the upstream has accepted it. Raises `CallError`."""
        return self._several(call)

    async def _one(self, call: Call) -> AsyncIterator[Event]:
        model = self._model or await self._first_model()
        if self.upstream.task == "llm/v1/embeddings":
            yield await self._embed(call, model)
            return
        response = await self._send(self._request(call, model))
        answer = Answer(call, model=None if self._own else model, whole=not call.stream)
        reader = self._reader(answer, lambda: _length(call.payload))
        failure: CallError | None = None
        chunks = self._http.chunks(response)
        try:
            for event in answer.start():
                yield event
            async for several in chunks:
                for chunk in several:
                    if error := chunk.get("error"):
                        raise self._failed(error)
                    for event in reader.read(chunk):
                        yield event
            if reader.finish is None:
                failure = self._wrong("ended its answer in the middle. Send the request again.")
        except TimeoutError:
            failure = self._wrong("stopped sending. Send the request again.", 504)
        except BREAKS as error:
            failure = self._http.broken(error)
        except (AttributeError, KeyError, TypeError):  # JSON, but of another shape
            failure = self._wrong("sent what cannot be read. Look at its log.")
        except CallError as error:
            failure = error
        finally:
            await chunks.aclose()
            response.release()
        if failure is not None:
            for event in answer.rest():
                yield event
            raise failure
        for event in reader.end():
            yield event

    def _request(self, call: Call, model: str) -> dict[str, Any]:
        if self.upstream.provider == "anthropic":
            return {**anthropic.body(call.payload), "model": model, "stream": True}
        if self.upstream.task == "llm/v1/completions":
            body = prompt_body(call.payload)
        else:
            limit = "max_completion_tokens" if self.upstream.provider == "openai" else "max_tokens"
            body = chat_body(call.payload, limit=limit)
        options = {"include_usage": True} if self._usage_option else None
        return present({**body, "model": model, "stream": True, "stream_options": options})

    async def _send(self, body: dict[str, Any]) -> Response:
        """The upstream's accepted response, its body unread."""
        for _ in (1, 2):
            response = await self._http.open("POST", self._path, body)
            if response.status == 200:
                return response
            text = await self._http.error_text(response)
            if response.status == 400 and "stream_options" in text and body.pop("stream_options", None):
                self._usage_option = False
                continue
            raise self._http.refused(response, text, self._model)
        raise unavailable(f"The model at {self.upstream.host} refused the request twice. Look at its log.", status=502)

    async def _embed(self, call: Call, model: str) -> Event:
        """`{"embeddings": [[float, …], …], "model", "usage"}` for `{"input": [str, …]}`."""
        asked = {"model": model, "input": call.payload["input"], "dimensions": call.payload.get("dimensions")}
        response = await self._http.open("POST", self._path, present(asked))
        host = self.upstream.host
        try:
            if response.status != 200:
                raise self._http.refused(response, await self._http.error_text(response), self._model)
            body = await self._http.json(response, MAX_VECTORS)
            rows = sorted(body["data"], key=lambda row: row.get("index", 0))
            vectors = [[float(number) for number in row["embedding"]] for row in rows]
        except TimeoutError:
            raise unavailable(f"The model at {host} stopped sending. Send the request again.", status=504) from None
        except BREAKS as error:
            raise self._http.broken(error) from error
        except (AttributeError, KeyError, TypeError, ValueError):
            raise unavailable(f"The model at {host} sent no embeddings. Look at its log.", status=502) from None
        finally:
            response.release()
        if len(vectors) != len(call.payload["input"]):
            count = f"{len(vectors)} embeddings for {len(call.payload['input'])} texts"
            raise unavailable(f"The model at {host} sent {count}. Look at its log.", status=502)
        counts = body.get("usage") or {}
        tokens = counts.get("prompt_tokens") or -(-sum(map(len, call.payload["input"])) // 4)
        usage = {"input_tokens": tokens, "output_tokens": 0, "total_tokens": tokens}
        result = {"embeddings": vectors, "model": body.get("model") or model, "usage": usage}
        return Event("result", {"result": result, "usage": usage})

    def _wrong(self, what: str, status: int = 502) -> CallError:
        return unavailable(f"The model at {self.upstream.host} {what}", status=status)

    def _failed(self, error: Any) -> CallError:
        """An error that an upstream tells within its answer."""
        said = error.get("message") if isinstance(error, Mapping) else error
        return unavailable(f"The model failed: {self._http.safe(str(said))}", status=502)

    async def _first_model(self) -> str:
        """The first model that the upstream lists, where settings name none."""
        response = await self._http.open("GET", "/models")
        if response.status != 200:
            raise self._http.refused(response, await self._http.error_text(response), None)
        try:
            self._model = str((await self._http.json(response))["data"][0]["id"])
        except TimeoutError:
            raise unavailable(f"The model at {self.upstream.host} stopped sending. Send the request again.", status=504) from None
        except BREAKS as error:
            raise self._http.broken(error) from error
        except (LookupError, TypeError):
            raise misconfigured(f"{self.upstream.host} lists no model. Set SMALTI_CHAT_MODEL to its name.") from None
        finally:
            response.release()
        return self._model


_TEXTS = ("input", "instructions", "content", "text", "arguments", "output")
_Made = tuple[str, Callable[[Answer, Callable[[], int]], Reader]]
_TASKS: Mapping[str, _Made] = {
    "llm/v1/chat": ("/chat/completions", Chunks),
    "llm/v1/completions": ("/completions", Chunks),
    "llm/v1/embeddings": ("/embeddings", Chunks),
}
_WIRES: Mapping[str, _Made] = {"anthropic": ("/v1/messages", anthropic.Messages)}


def _length(value: Any) -> int:
    """Characters of the texts in a request and some for each item, for upstreams that count no tokens."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return 16 + sum(_length(value[key]) for key in _TEXTS if key in value)
    return sum(map(_length, value)) if isinstance(value, list | tuple) else 0


__all__ = ["ExternalChat", "ModelSettingError", "Timeouts", "Upstream", "parse_chat_model"]
