"""Pictures of an evaluation, for MLflow's run page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def panels(count: int) -> tuple[Figure, Sequence[Any]]:
    """A figure with so many plots beside each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * count, 4.5), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def draw_confusion(axes: Axes, labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> None:
    """Rows are true labels, columns predicted ones."""
    axes.imshow(confusion, cmap="Blues")
    axes.set(title="Confusion", xlabel="predicted", ylabel="true", xticks=range(len(labels)), yticks=range(len(labels)))
    axes.set_xticklabels(labels, rotation=30, ha="right")
    axes.set_yticklabels(labels)
    for i, row in enumerate(confusion):
        for j, count in enumerate(row):
            axes.text(j, i, str(count), ha="center", va="center")


def draw_reliability(axes: Axes, points: Sequence[tuple[float, float, int]], ece: float) -> None:
    """How often predictions of a confidence are right."""
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey")
    axes.plot([confidence for confidence, _, _ in points], [accuracy for _, accuracy, _ in points], marker="o")
    axes.set(title=f"Reliability (ECE {ece:.3f})", xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
