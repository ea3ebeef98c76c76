"""Plots as SVG text, drawn by matplotlib without a display; what an evaluation's report and MLflow's artifacts show."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

COLORS = {"better": "#2e7d32", "worse": "#c62828"}
GREY = "#607d8b"


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, list[str]]]:
    """A figure's axes, and a list that holds the SVG once the block has drawn."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    drawn: list[str] = []
    # A fixed salt: the same numbers give the same bytes.
    with rc_context({"svg.hashsalt": "smalti", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        yield axes, drawn
        stream = io.StringIO()
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    text = stream.getvalue()
    drawn.append(text[text.index("<svg") :])


def intervals(rows: Sequence[tuple[str, float, float, float, str]], *, zero: bool = True) -> str:
    """Values with intervals, one a line: (name, value, low, high, verdict), with a line at zero; "" for no rows."""
    if not rows:
        return ""
    with _figure(6.5, 0.6 + 0.28 * len(rows)) as (axes, drawn):
        for place, (_, value, low, high, verdict) in enumerate(reversed(rows)):
            color = COLORS.get(verdict, GREY)
            axes.plot([low, high], [place, place], color=color, linewidth=2)
            axes.plot([value], [place], "o", color=color, markersize=5)
        axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
        if zero:
            axes.axvline(0, color="#bbb", linewidth=1, zorder=0)
        else:
            axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.6, len(rows) - 0.4)
    return drawn[0]


def histogram(values: Sequence[float], label: str, *, bins: int = 30) -> str:
    """How numbers are spread; "" for none."""
    if not values:
        return ""
    with _figure(5.5, 2.2) as (axes, drawn):
        axes.hist(values, bins=bins, color=GREY)
        axes.set_xlabel(label)
        axes.set_ylabel("rows")
    return drawn[0]


def confusion(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix: rows are what is true, columns what was predicted."""
    size = max(2.6, 0.5 * len(labels) + 1.2)
    with _figure(size, size) as (axes, drawn):
        axes.imshow(counts, cmap="Blues")
        top = max((max(row) for row in counts), default=0)
        for place, row in enumerate(counts):
            for column, count in enumerate(row):
                color = "white" if count > top / 2 else "#263238"
                axes.text(column, place, str(count), ha="center", va="center", color=color)
        axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
    return drawn[0]


def calibration(points: Sequence[Mapping[str, float]]) -> str:
    """Confidence against the share that was right, by bin (`confidence`, `accuracy`, `n`); "" for none."""
    if not points:
        return ""
    with _figure(3.4, 3.2) as (axes, drawn):
        axes.plot([0, 1], [0, 1], "--", color="#bbb", linewidth=1)
        axes.plot([point["confidence"] for point in points], [point["accuracy"] for point in points], "o-", color=GREY)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("confidence")
        axes.set_ylabel("share right")
    return drawn[0]
