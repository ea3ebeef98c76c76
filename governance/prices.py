"""What tokens cost: a table with a version, from a file that an owner may lay another one over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

BUNDLED = Path(__file__).with_name("prices.yaml")
_DATED = re.compile(r"[-@]\d{4}-?\d{2}-?\d{2}$")


class PriceError(Exception):
    """A price table cannot be read; the message names the file and what is wrong in it."""


class Price(BaseModel):
    """US dollars per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(default=0.0, ge=0, allow_inf_nan=False)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str = Field(min_length=1, max_length=30)
    models: dict[str, Price]


class Prices:
    """Prices by the name of a model or of an endpoint. Immutable, but for `serve`.

    Parameters
    ----------
    models: price by name.
    version: stamped beside each cost.
    """

    def __init__(self, models: Mapping[str, Price] | None = None, version: str = "") -> None:
        self.version = version
        self._models = dict(models or {})
        self._served: dict[str, str] = {}

    @classmethod
    def load(cls, own: Path | None = None) -> Prices:
        """The bundled table, with `own` laid over it. Raises `PriceError`."""
        bundled = _read(BUNDLED)
        if own is None:
            return cls(bundled.models, bundled.version)
        over = _read(own)
        return cls({**bundled.models, **over.models}, f"{bundled.version}+{over.version}")

    def serve(self, endpoint: str, model: str) -> None:
        """Say which model an endpoint serves, so that its calls can be priced before they are made."""
        self._served[endpoint] = model

    def unpriced(self, endpoint: str) -> str | None:
        """The model that an endpoint is known to serve, where that has no price."""
        return None if self.of(endpoint) else self._served.get(endpoint)

    def of(self, endpoint: str, model: str | None = None) -> Price | None:
        """The price of what an endpoint answers with: the model's it names, else the endpoint's own; None without one."""
        for name in (model, endpoint, self._served.get(endpoint)):
            if name is not None:
                price = self._models.get(name) or self._models.get(_undated(name))
                if price is not None:
                    return price
        return None

    def cost(self, endpoint: str, model: str | None, usage: Mapping[str, int]) -> float | None:
        """US dollars of a call; None where there is no price."""
        price = self.of(endpoint, model) if self._models else None
        if price is None:
            return None
        return (usage.get("input_tokens", 0) * price.input + usage.get("output_tokens", 0) * price.output) / 1e6


@lru_cache(1_024)
def _undated(name: str) -> str:
    """A model's name without the date at its end."""
    return _DATED.sub("", name)


def _read(path: Path) -> _Table:
    import yaml

    try:
        data: Any = yaml.safe_load(path.read_text("utf-8"))
        return _Table.model_validate(data)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PriceError(f"the price table {path} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise PriceError(
            f"the price table {path}: {place}: {first['msg']}; write version and models: NAME: {{input, output}}"
        ) from None
