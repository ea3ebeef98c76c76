"""Charts on the console, drawn by ECharts as SVG in the page's own colours; each says in words what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nicegui import ui

from serving.ui.parts import tag

COLOURS = ("var(--t1)", "var(--t2)", "var(--t3)", "var(--t0)", "var(--t4)")
Options = dict[str, Any]

_TEXT = {"color": "var(--soft)", "fontFamily": "Roboto, system-ui, sans-serif"}
_STILL = {"disabled": True}


def line(name: str, points: Sequence[Any], colour: str, **more: Any) -> Options:
    """A line; `points` are values of categories, or pairs of x and y."""
    return {
        "name": name, "type": "line", "data": list(points), "itemStyle": {"color": colour}, "connectNulls": True,
        "lineStyle": {"color": colour, "width": 2}, "symbolSize": 5, "emphasis": _STILL, **more,
    }  # fmt: skip


def bars(name: str, values: Sequence[float], colour: str) -> Options:
    """Bars that stand on those of the series before."""
    return {
        "name": name, "type": "bar", "stack": "all", "data": list(values), "itemStyle": {"color": colour}, "emphasis": _STILL
    }  # fmt: skip


def band(name: str, points: Sequence[tuple[Any, float | None, float | None, float | None]], colour: str) -> list[Options]:
    """An estimate with its interval over x: (x, estimate, lower, upper), where an end that is not known is None."""
    known = [(x, low, high) for x, _, low, high in points if low is not None and high is not None]
    edge = {"type": "line", "stack": f"band {name}", "stackStrategy": "all", "symbol": "none", "emphasis": _STILL, "silent": True}
    edge |= {"lineStyle": {"width": 0}, "tooltip": {"show": False}, "itemStyle": {"color": colour}}
    fill = {"areaStyle": {"color": colour, "opacity": 0.18}}
    return [
        {**edge, "data": [[x, low] for x, low, _ in known]},
        {**edge, **fill, "data": [[x, high - low] for x, low, high in known]},
        line(name, [[x, value] for x, value, _, _ in points if value is not None], colour, symbolSize=4),
    ]


def shortened(name: str, most: int = 26) -> str:
    """A name as a legend has room for it, by its beginning and its end."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"


def plot(
    title: str,
    label: str,
    series: Sequence[Options],
    *,
    categories: Sequence[str] | None = None,
    empty: str = "",
    x: str = "value",
    x_name: str = "",
    zero: bool = False,
    whole: bool = True,
) -> None:
    """A figure with its caption.

    Parameters
    ----------
    label: what it shows, for those who do not see it.
    categories: names of the columns; without them `x` is the kind of the x axis (`value`, `time`).
    empty: said in place of a chart where it is given.
    zero: a line is drawn there.
    whole: counts and the like, so that no gridline stands between two whole numbers; over categories only.
    """
    with tag("figure", "plot"):
        tag("figcaption", text=title)
        if empty:
            tag("p", "chart-empty", text=empty)
            return
        below: Options = {"type": "category", "data": list(categories)} if categories is not None else {"type": x, "scale": True}
        below |= {"axisLabel": {**_TEXT, "hideOverlap": True}, "axisLine": {"lineStyle": {"color": "var(--line-strong)"}}}
        below |= {"axisTick": {"show": False}, "splitLine": {"show": False}}
        if x_name:
            below |= {"name": x_name, "nameLocation": "middle", "nameGap": 24, "nameTextStyle": _TEXT}
        made = [dict(each) for each in series]
        if zero and made:
            rule = {"silent": True, "symbol": "none", "label": {"show": False}, "data": [{"yAxis": 0}]}
            made[-1]["markLine"] = {**rule, "lineStyle": {"color": "var(--ink)", "type": "solid", "width": 1}}
        named = [each["name"] for each in made if "name" in each]
        right = 34 if categories is None and x == "time" else 14  # half of a time stands beyond the end
        legend = len(named) > 1 or len(made) > len(named)
        options: Options = {
            "animation": False, "series": made, "xAxis": below,
            "grid": {"left": 8, "right": right, "top": 34 if legend else 14, "bottom": 22 if x_name else 4, "containLabel": True},
            "tooltip": {"trigger": "axis", "confine": True, "renderMode": "richText"},
            "yAxis": {
                "type": "value", "axisLabel": _TEXT, "splitLine": {"lineStyle": {"color": "var(--line)"}},
                **({"minInterval": 1 if whole else 0} if categories is not None else {"scale": not zero}),
            },
        }  # fmt: skip
        if legend:
            options["legend"] = {
                "type": "scroll",
                "data": named,
                "top": 0,
                "left": 0,
                "itemWidth": 10,
                "itemHeight": 10,
                "textStyle": _TEXT,
            }
        with tag("div", "plot-box", role="img", aria_label=label):
            ui.echart(options, renderer="svg").classes("plot-canvas")
