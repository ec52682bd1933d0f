"""Each family in a line: how far ahead of its best peers, how near to the machine's limit, and its worst row."""

from collections.abc import Sequence
from statistics import median

from bp.bench import units
from bp.bench.report import charts
from bp.bench.report.axes import Axis, logarithmic
from bp.bench.report.figures import geometric_mean, grouped, ratios
from bp.bench.report.markup import Markup, element, html
from bp.bench.results import Results, Row

NOTE = (
    "Speed against the fastest peer of each row: its time / bp's, so above 1 bp is faster. The mark is the geometric "
    "mean, the line reaches from the worst row to the best. Percent of the limit is the median."
)
TICKS = (0.25, 0.5, 1.0, 2.0, 4.0)
WIDE_TICKS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


def build(results: Results) -> Markup:
    """A table of families; empty where no row has a ratio or a limit."""
    rows = results.rows
    if all(row.ratio is None and row.percent is None for row in rows):
        return Markup()
    compared = ratios(rows)
    scale = logarithmic([*compared, 0.5, 2.0], "", units.ratio) if compared else None
    heads = [html("family")]
    heads += [html("mean"), _axis(scale), html("range")] if scale is not None else []
    heads += [html("of the limit"), html("rows"), html("worst row")]
    lines = [_family(family, members, scale) for family, members in grouped(rows, lambda row: row.family).items()]
    table = element(
        "table",
        element("thead", element("tr", *(element("th", head, scope="col") for head in heads))),
        element("tbody", *lines),
        class_="summary",
    )
    note = element("p", NOTE, class_="note") if compared else None
    return html(note, element("div", table, class_="scroll card", tabindex="0", role="region", aria_label="Families"))


def _family(family: str, rows: Sequence[Row], scale: Axis | None) -> Markup:
    compared = ratios(rows)
    reached = [row.percent for row in rows if row.percent is not None]
    cells = [element("th", family, scope="row")]
    if scale is not None and compared:
        mean, low, high = geometric_mean(compared), min(compared), max(compared)
        cells.append(element("td", element("strong", units.ratio(mean)), class_="number"))
        cells.append(element("td", _strip(scale, low, mean, high), class_="strip"))
        cells.append(
            element(
                "td",
                units.ratio(low) if low == high else f"{units.ratio(low)} {units.DASH} {units.ratio(high)}",
                class_="number",
            )
        )
    elif scale is not None:
        cells.append(element("td", "no peer", colspan="3", class_="muted"))
    share = units.percent(median(reached)) if reached else units.DASH
    cells.append(element("td", share, class_="number"))
    cells.append(element("td", str(len(rows)), class_="number"))
    cells.append(element("td", _worst(rows), class_="worst"))
    return element("tr", *cells)


def _axis(scale: Axis) -> Markup:
    """The ticks over the strips."""
    ticks = [
        element("text", f"{tick:g}{units.TIMES}", x=charts.share(scale.place(tick)), y="15", text_anchor="middle")
        for tick in (WIDE_TICKS if scale.high / scale.low > 30.0 else TICKS)
        if scale.low <= tick <= scale.high
    ]
    return element("svg", *ticks, role="img", aria_label="speed against the fastest peer")


def _strip(scale: Axis, low: float, mean: float, high: float) -> Markup:
    ends = {"y1": "50%", "y2": "50%"}
    even, left, right = (charts.share(scale.place(value)) for value in (1.0, low, high))
    color = "faster" if mean >= 1.0 else "slower"
    return element(
        "svg",
        element("line", x1=even, x2=even, y1="0", y2="100%", class_="even"),
        element("line", x1=left, x2=right, class_=f"reach {color}", **ends),
        element("circle", cx=charts.share(scale.place(mean)), cy="50%", r="5", class_=color),
        role="img",
        aria_label=f"{units.ratio(low)} to {units.ratio(high)}, mean {units.ratio(mean)}",
    )


def _worst(rows: Sequence[Row]) -> Markup:
    """The row that is farthest behind its best peer; where none has a peer, the farthest from the limit."""
    behind = [(row.ratio, row) for row in rows if row.ratio is not None and row.ratio > 0.0]
    if behind:
        ratio, row = min(behind, key=lambda pair: pair[0])
        return html(_what(row), element("small", f"{units.ratio(ratio)} of {row.best_peer}"))
    far = [(row.percent, row) for row in rows if row.percent is not None]
    if not far:
        return html(units.DASH)
    percent, row = min(far, key=lambda pair: pair[0])
    return html(_what(row), element("small", f"{units.percent(percent)} of the limit"))


def _what(row: Row) -> Markup:
    return element("span", " ".join(filter(None, [row.benchmark, row.shape, row.precision])))
