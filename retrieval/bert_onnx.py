"""all-MiniLM-L6-v2 as an ONNX graph, written straight from its safetensors: no torch, no exporter.

The graph uses ONNX Runtime's fused operators (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md)
and ends in the unit-length mean of the token states, so one run gives the embeddings, and the states where they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

Variant = Literal["fp32", "int8"]

LAYERS, HIDDEN, HEADS, EPSILON = 6, 384, 12, 1e-12
GRAPH_VERSION = 1
"""Raised when the same text may now get another vector."""
OUTPUTS = "embedding-states"
MICROSOFT = "com.microsoft"


class _Graph:
    """Collects nodes and initializers; names are made unique by the caller."""

    def __init__(self, variant: Variant) -> None:
        from onnx import helper, numpy_helper

        self.variant, self.nodes, self.weights = variant, [], []
        self._node, self._array = helper.make_node, numpy_helper.from_array

    def const(self, name: str, value: np.ndarray) -> str:
        self.weights.append(self._array(np.ascontiguousarray(value), name))
        return name

    def op(self, kind: str, inputs: list[str], output: str, domain: str = "", outputs: int = 1, **attributes: Any) -> str:
        names = [output] + [f"{output}_{i}" for i in range(1, outputs)]
        self.nodes.append(self._node(kind, inputs, names, name=output, domain=domain, **attributes))
        return output

    def linear(self, x: str, weight: np.ndarray, bias: np.ndarray | None, output: str) -> str:
        """`x @ weight.T + bias` with the weight as stored by torch: (out, in)."""
        if self.variant == "fp32":
            w = self.const(f"{output}.w", weight.T)
            if bias is None:
                return self.op("MatMul", [x, w], output)
            return self.op("Add", [self.op("MatMul", [x, w], f"{output}.mm"), self.const(f"{output}.b", bias)], output)
        # Eight bits, one scale for each output channel: one scale for the whole matrix loses quality.
        scale = np.abs(weight).max(axis=1) / 127.0
        quantised = np.clip(np.rint(weight / scale[:, None]), -127, 127).astype(np.int8)
        inputs = [x, self.const(f"{output}.w", quantised.T), self.const(f"{output}.s", scale.astype(np.float32))]
        inputs.append(self.const(f"{output}.z", np.zeros(len(scale), np.int8)))
        if bias is not None:
            inputs.append(self.const(f"{output}.b", bias))
        return self.op("DynamicQuantizeMatMul", inputs, output, MICROSOFT)


def build(weights: dict[str, np.ndarray], variant: Variant) -> ModelProto:
    """The encoder as an ONNX model.

    Inputs `ids` and `mask` (int32, batch x length) and `lengths` (int32, batch); outputs `embedding` (float32, batch x 384) and
    `states` (float32, batch x length x 384).
    """
    from onnx import TensorProto, helper

    graph = _Graph(variant)

    def w(name: str) -> np.ndarray:
        return weights[name].astype(np.float32)

    # Every token has type 0, so its embedding is added to the positions once, here.
    positions = w("embeddings.position_embeddings.weight") + w("embeddings.token_type_embeddings.weight")[0]
    hidden = graph.op(
        "EmbedLayerNormalization",
        [
            "ids",
            "",
            graph.const("words", w("embeddings.word_embeddings.weight")),
            graph.const("positions", positions),
            "",
            graph.const("embed.gamma", w("embeddings.LayerNorm.weight")),
            graph.const("embed.beta", w("embeddings.LayerNorm.bias")),
        ],
        "embed",
        MICROSOFT,
        outputs=2,
        epsilon=EPSILON,
    )
    for i in range(LAYERS):
        hidden = _layer(graph, w, i, hidden)
    graph.op("Identity", [hidden], "states")
    # Sum of the real tokens' states; dividing by their number would not survive the normalisation.
    mask = graph.op("Cast", ["mask"], "mask.float", to=TensorProto.FLOAT)
    mask = graph.op("Unsqueeze", [mask, graph.const("axis.1", np.array([1], np.int64))], "mask.row")
    summed = graph.op("MatMul", [mask, hidden], "summed")
    pooled = graph.op("Squeeze", [summed, "axis.1"], "pooled")
    graph.op("LpNormalization", [pooled], "embedding", axis=-1, p=2)

    def tensor(name: str, kind: int, shape: list[str | int]) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "all-MiniLM-L6-v2",
            [
                tensor("ids", TensorProto.INT32, ["batch", "length"]),
                tensor("mask", TensorProto.INT32, ["batch", "length"]),
                tensor("lengths", TensorProto.INT32, ["batch"]),
            ],
            [
                tensor("embedding", TensorProto.FLOAT, ["batch", HIDDEN]),
                tensor("states", TensorProto.FLOAT, ["batch", "length", HIDDEN]),
            ],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=9,
    )


def _layer(graph: _Graph, w: Callable[[str], np.ndarray], i: int, hidden: str) -> str:
    at, here = f"encoder.layer.{i}.", f"l{i}."
    own = [f"{at}attention.self.{part}." for part in ("query", "key", "value")]
    qkv = graph.linear(
        hidden, np.concatenate([w(p + "weight") for p in own]), np.concatenate([w(p + "bias") for p in own]), here + "qkv"
    )
    graph.op("Split", [qkv], here + "q", outputs=3, axis=-1, num_outputs=3)
    parts = [here + "q", here + "q_1", here + "q_2"]
    attended = graph.op("MultiHeadAttention", [*parts, "", "lengths"], here + "attention", MICROSOFT, num_heads=HEADS)
    out = graph.linear(attended, w(at + "attention.output.dense.weight"), None, here + "projected")

    def norm(x: str, skip: str, part: str, output: str) -> str:
        names = [("gamma", "LayerNorm.weight"), ("beta", "LayerNorm.bias"), ("bias", "dense.bias")]
        inputs = [graph.const(f"{output}.{short}", w(f"{at}{part}.{long}")) for short, long in names]
        return graph.op("SkipLayerNormalization", [x, skip, *inputs], output, MICROSOFT, epsilon=EPSILON)

    hidden = norm(out, hidden, "attention.output", here + "middle")
    wide = graph.linear(hidden, w(at + "intermediate.dense.weight"), None, here + "wide")
    bias = graph.const(here + "wide.bias", w(at + "intermediate.dense.bias"))
    wide = graph.op("BiasGelu", [wide, bias], here + "gelu", MICROSOFT)
    return norm(graph.linear(wide, w(at + "output.dense.weight"), None, here + "narrow"), hidden, "output", here + "out")


def read_weights(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path)
