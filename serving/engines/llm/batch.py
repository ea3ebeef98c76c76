"""Sequences decoded together: one forward pass a step, with one key/value cache whose rows come and go.

Rows are padded on the left, so that all of them end at the same column and a step adds one column for all. A new row is
prefilled by itself (or with others that came at the same time) and then joined; one that ended is taken out, and columns
that no row needs any more with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

_SLACK = 128
"""Columns that a cache is made longer by, so that most steps write in place."""


class _Layer(DynamicLayer):
    """A layer of the cache that grows in large steps instead of being copied for every token."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.is_initialized:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
            self._used = 0
            self._room(key_states, value_states, key_states.shape[-2])
        used, end = self._used, self._used + key_states.shape[-2]
        if end > self._keys.shape[-2]:
            keys, values = self._keys, self._values
            self._room(key_states, value_states, end)
            self._keys[:, :, :used], self._values[:, :, :used] = keys[:, :, :used], values[:, :, :used]
        self._keys[:, :, used:end], self._values[:, :, used:end] = key_states, value_states
        self._used = end
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values

    def _room(self, keys: torch.Tensor, values: torch.Tensor, columns: int) -> None:
        self._keys = keys.new_zeros((*keys.shape[:2], columns + _SLACK, keys.shape[-1]))
        self._values = values.new_zeros((*values.shape[:2], columns + _SLACK, values.shape[-1]))

    def hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Replace what is held; the tensors have room for more columns after the first `keys.shape[-2] - _SLACK`."""
        self._keys, self._values = keys, values
        self._used = keys.shape[-2] - _SLACK
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values = keys[:, :, : self._used], values[:, :, : self._used]


class Batch:
    """Rows that are decoded together. `rows` are the caller's own objects, in the order of the logits.

    Parameters
    ----------
    model: a causal language model of transformers whose layers are all attention.
    """

    def __init__(self, model: Any) -> None:
        self.rows: list[Any] = []
        self._model = model
        accepted = inspect.signature(model.forward).parameters
        self._positions = "position_ids" in accepted
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._cache = Cache(layer_class_to_replicate=_Layer)
        self._mask = torch.zeros((0, 0), dtype=torch.long, device=model.device)

    @property
    def columns(self) -> int:
        return self._mask.shape[1]

    @property
    def _layers(self) -> list[Any]:
        return list(self._cache.layers)

    def start(self, rows: Sequence[Any], prompts: Sequence[Sequence[int]]) -> None:
        """Begin with these rows; `feed` then reads their prompts."""
        longest = max(map(len, prompts))
        self.rows = list(rows)
        device = self._mask.device
        self._prompt = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        self._real = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        self._mask = self._mask.new_zeros((len(rows), 0))

    def feed(self, tokens: int) -> torch.Tensor | None:
        """Read so many more columns of the prompts; the logits [rows, vocabulary] once they are read whole."""
        start, end = self.columns, min(self.columns + tokens, self._prompt.shape[1])
        self._mask = self._real[:, :end]
        logits = self._forward(self._prompt[:, start:end])
        return logits if end == self._prompt.shape[1] else None

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add one token to each row; the logits [rows, vocabulary] of what follows."""
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(self.rows), 1))], 1)
        return self._forward(torch.tensor(tokens, device=self._mask.device)[:, None])

    @torch.inference_mode()
    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        more: dict[str, Any] = dict(self._last_only)
        if self._positions:
            more["position_ids"] = (self._mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self._model(input_ids=ids, attention_mask=self._mask, past_key_values=self._cache, use_cache=True, **more)
        return out.logits[:, -1]

    @torch.inference_mode()
    def join(self, other: Batch) -> None:
        """Take over another batch's rows."""
        if not self.rows:
            self.rows, self._cache, self._mask = other.rows, other._cache, other._mask
            return
        columns = max(self.columns, other.columns)
        self._mask = torch.cat([_left(self._mask, columns), _left(other._mask, columns)])
        for mine, theirs in zip(self._layers, other._layers, strict=True):
            mine.hold(_joined(mine.keys, theirs.keys, columns), _joined(mine.values, theirs.values, columns))
        self.rows = [*self.rows, *other.rows]

    @torch.inference_mode()
    def keep(self, positions: Sequence[int]) -> None:
        """Keep these rows only."""
        if len(positions) == len(self.rows):
            return
        self.rows = [self.rows[position] for position in positions]
        if not positions:
            self._cache = Cache(layer_class_to_replicate=_Layer)
            self._mask = self._mask.new_zeros((0, 0))
            return
        index = torch.tensor(positions, device=self._mask.device)
        mask = self._mask[index]
        first = int(mask.argmax(1).min())
        self._mask = mask[:, first:]
        for layer in self._layers:
            layer.hold(_kept(layer.keys, index, first), _kept(layer.values, index, first))


def _left(mask: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.nn.functional.pad(mask, (columns - mask.shape[1], 0))


def _joined(first: torch.Tensor, second: torch.Tensor, columns: int) -> torch.Tensor:
    rows = first.shape[0]
    made = first.new_zeros((rows + second.shape[0], first.shape[1], columns + _SLACK, first.shape[3]))
    made[:rows, :, columns - first.shape[2] : columns] = first
    made[rows:, :, columns - second.shape[2] : columns] = second
    return made


def _kept(held: torch.Tensor, index: torch.Tensor, first: int) -> torch.Tensor:
    return torch.nn.functional.pad(held[index, :, first:], (0, 0, 0, _SLACK))
