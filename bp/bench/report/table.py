"""The table of all rows: a line each, to sort and filter and open."""

from collections.abc import Mapping, Sequence

from bp.bench import units
from bp.bench.report import details
from bp.bench.report.figures import GLYPHS, QUANTILES, spread, times, verdict
from bp.bench.report.markup import Markup, chip, element, html
from bp.bench.results import Results, Row

COLUMNS = (
    *("benchmark", "shape", "precision", "bp median", QUANTILES, "speed", "against"),
    *("of limit", "target", "bound", "B/s", "FLOP/s", "family"),
)
NOTE = (
    "Press a heading to sort, a benchmark to open what each contestant did. Speed is against the fastest peer: its "
    "time / bp's, so above 1 bp is faster. B/s and FLOP/s count the least work that a row needs."
)
WORDS = ("benchmark", "family", "shape", "precision", "bound", "against", "family")  # columns that sort as text
STATES = {
    "": "all rows",
    "slower": "slower than the best peer",
    "below": "below the target",
    "bad": "with a wrong or failed contestant",
    "untimed": "without a time of bp",
    "refused": "refused: timed while the GPU held its clocks back",
}


def build(results: Results) -> Markup:
    """Filters and the table; empty where there is no row."""
    rows = results.rows
    if not rows:
        return Markup()
    columns = [column for column in COLUMNS if column != "target" or any(row.target is not None for row in rows)]
    heads = [
        element("th", element("button", head, type="button"), scope="col", aria_sort="none", class_=_class(head))
        for head in columns
    ]
    table = element(
        "table",
        element("thead", element("tr", *heads)),
        *(_row(row, columns) for row in rows),
        class_="rows",
    )
    box = element("div", table, class_="scroll tall card", tabindex="0", role="region", aria_label="All rows")
    return html(element("p", NOTE, class_="note"), _filters(rows), box)


def _filters(rows: Sequence[Row]) -> Markup:
    present = {state for row in rows for state in _states(row)}
    families = dict.fromkeys(row.family for row in rows)
    precisions = dict.fromkeys(row.precision for row in rows if row.precision)
    return element(
        "div",
        element("label", "Search ", element("input", type="search", data_filter="text")),
        _select("Family", "family", {"": "all"} | {family: family for family in families}),
        _select("Precision", "precision", {"": "all"} | {precision: precision for precision in precisions}),
        _select("Show", "state", {state: words for state, words in STATES.items() if not state or state in present}),
        element("output", f"{len(rows)} rows"),
        class_="filters",
    )


def _select(title: str, name: str, choices: Mapping[str, str]) -> Markup:
    options = [element("option", words, value=value) for value, words in choices.items()]
    return element("label", f"{title} ", element("select", *options, data_filter=name))


def _states(row: Row) -> list[str]:
    """Which of STATES the row belongs to."""
    found = {
        "slower": row.ratio is not None and row.ratio < 1.0,
        "below": row.target is not None and row.percent is not None and row.percent < row.target,
        "bad": any(entry.status in ("wrong", "failed") for entry in row.entries),
        "untimed": times(row) is None,
        "refused": bool(row.refused),
    }
    return [state for state, holds in found.items() if holds]


def _row(row: Row, columns: Sequence[str]) -> Markup:
    opener = element("button", row.benchmark, type="button", class_="open", aria_expanded="false")
    cells = [
        element("th", opener, scope="row"),
        *(element("td", text) for text in (row.shape, row.precision)),
        *_times(row),
        *_compared(row),
        *_limited(row, "target" in columns),
        element("td", row.family),
    ]
    more = element(
        "td", element("div", details.sizes(row), details.contestants(row), class_="inner"), colspan=str(len(columns))
    )
    return element(
        "tbody",
        element("tr", *cells),
        element("tr", more, class_="details"),
        data_family=row.family,
        data_precision=row.precision,
        data_state=" ".join(_states(row)),
    )


def _class(head: str) -> str | None:
    return None if head in WORDS else "number"


def _number(text: str, key: float | None, class_: str = "", more: Markup | None = None) -> Markup:
    """A cell that sorts by its number; without one it sorts last."""
    return element("td", text, more, class_=f"number {class_}".strip(), data_key=None if key is None else float(key))


def _times(row: Row) -> list[Markup]:
    ours = times(row)
    if ours is not None:
        return [_number(units.seconds(ours.median), ours.median), _number(spread(ours), ours.high - ours.low, "muted")]
    why = "not run" if row.ours is None else row.ours.status
    return [_number("", None, more=chip(why)), _number(units.DASH, None)]


def _compared(row: Row) -> list[Markup]:
    if row.ratio is None:
        return [_number(units.DASH, None), element("td", units.DASH)]
    found = verdict(row, row.best_peer, row.ratio)
    ratio = _number(f"{GLYPHS[found]} {units.ratio(row.ratio)}", row.ratio, f"is-{found}")
    return [ratio, element("td", row.best_peer)]


def _limited(row: Row, target: bool) -> list[Markup]:
    parts = [row.percent, row.target] if target else [row.percent]
    shares = [_number(units.DASH if part is None else units.percent(part), part) for part in parts]
    speeds = [_speed(row, row.nbytes, row.bound == "compute"), _speed(row, row.flops, row.bound == "memory")]
    return [*shares, element("td", row.bound or units.DASH), *speeds]


def _speed(row: Row, amount: float, aside: bool) -> Markup:
    """So much a second; muted where it is not what limits the row."""
    ours = times(row)
    if ours is None or amount <= 0.0:
        return _number(units.DASH, None)
    speed = amount / ours.median
    return _number(units.short(speed), speed, "muted" if aside else "")
