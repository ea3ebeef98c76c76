"""Tables that filter, sort and leave as CSV; every cell is text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from nicegui import ui

from serving.ui.parts import button, tag

Column = tuple[str, str]
"""Field and heading."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")

_STATUS = """<q-td :props="props"><span v-if="props.value !== '' && props.value != null"
 :class="'status ' + (props.value < 400 ? 'good' : props.value < 500 ? 'warn' : 'bad')">{{ props.value }}</span></q-td>"""
_STATES = {
    **dict.fromkeys(("READY", "ONLINE", "RUNNING", "DECIDED", "PROMOTED", "COMPLETED", "in force"), "good"),
    **dict.fromkeys(("FAILED", "ROLLED_BACK"), "bad"),
}
_STATE = f"""<q-td :props="props"><span v-if="props.value"
 :class="'status ' + ({json.dumps(_STATES).replace('"', "'")}[props.value] || 'warn')">{{{{ props.value }}}}</span></q-td>"""
_OPEN = """<q-td :props="props"><button type="button" class="cell-link" @click="$parent.$emit('opened', props.row.__key)"
 :aria-label="props.col.label ? 'Open ' + props.value : props.value + ' ' + props.row.__key"
 :title="String(props.value ?? '').length > 28 ? props.value : null">{{ props.value }}</button></q-td>"""
_METER = """<q-td :props="props"><span class="meter" :class="{ full: props.col.name === 'spent' && props.value >= 80 }"><span
 :style="'width:' + Math.min(100, props.value) + '%'"></span></span>{{ props.value }} %</q-td>"""
_CELL = """<q-td :props="props"><span
 :title="String(props.value ?? '').length > 28 ? props.value : null">{{ typeof props.value === 'number'
 ? props.value.toLocaleString('en-US', { maximumFractionDigits: 6 }) : props.value }}</span></q-td>"""


def csv_of(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as RFC 4180 text. What a spreadsheet would take for a formula is quoted as text."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([label for _, label in columns])
    for row in rows:
        cells = ["" if row.get(name) is None else row[name] for name, _ in columns]
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in cells])
    return out.getvalue()


def table(
    title: str,
    empty: str,
    columns: Sequence[Column],
    rows: Sequence[Mapping[str, Any]],
    *,
    key: str,
    size: int = 10,
    opens: str | None = None,
    on_open: Callable[[str], Any] | None = None,
    wraps: Collection[str] = (),
) -> ui.table | None:
    """A table under its heading, of the columns that say something; `empty` is said where there are no rows.

    Parameters
    ----------
    key: the field that names a row.
    size: rows a page.
    opens: the field whose cells are buttons that call `on_open` with the row's key. In a column without a heading they say what
        is done with the row.
    wraps: fields of longer texts, which take several lines. Those of others are cut off and told whole when pointed at.
    """
    with tag("div", "section-head"):
        tag("h2", text=title)
        search = None
        if rows:
            with tag("div", "head-tools"):
                name = title.lower()
                search = tag("input", "field filter", type="search", placeholder="Filter", aria_label=f"Filter {name}")
                button(
                    "button quiet small",
                    f"{title} as CSV",
                    lambda: ui.download.content(
                        csv_of([each for each in columns if each[1]], rows), f"{name.replace(' ', '-')}.csv", "text/csv"
                    ),
                    text="CSV",
                )
    if search is None:
        tag("p", "hint empty-state", text=empty)
        return None
    numeric = {name for name, _ in columns if all(isinstance(row.get(name), int | float | None) for row in rows)}
    filled = {name for name, _ in columns if any(row.get(name) not in (None, "") for row in rows)}  # the CSV has them all
    made = ui.table(
        columns=[
            {
                "name": name,
                "label": label,
                "field": name,
                "sortable": True,
                "align": "right" if name in numeric else "left",
                "classes": "wraps" if name in wraps else "",
            }
            for name, label in columns
            if name in filled
        ],
        rows=[{**row, "__key": str(row.get(key))} for row in rows],
        row_key="__key",
        pagination=size,
    ).classes("grid")
    made.props["flat"] = True
    made.props["hide-pagination"] = len(rows) <= size
    made.props["rows-per-page-options"] = [size, 50, 0]
    made.add_slot("body-cell", _CELL)
    made.add_slot("body-cell-status", _STATUS)
    made.add_slot("body-cell-state", _STATE)
    for share in ("done", "spent"):
        made.add_slot(f"body-cell-{share}", _METER)
    if opens is not None and on_open is not None:
        made.add_slot(f"body-cell-{opens}", _OPEN)
        made.on("opened", lambda event: on_open(str(event.args)))
    search.on("input", lambda event: made.set_filter(str(event.args)), js_handler="(e) => emit(e.target.value)")
    return made
