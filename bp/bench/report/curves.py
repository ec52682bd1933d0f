"""Scaling curves: time along one size of a benchmark, a line for each contestant."""

from collections.abc import Sequence

from bp.bench import units
from bp.bench.report import charts
from bp.bench.report.axes import Axis, linear, logarithmic
from bp.bench.report.figures import grouped, spread, timed
from bp.bench.report.markup import Markup, element, html
from bp.bench.results import Results, Row, Size, Times

NOTE = "Median time along one size; the band reaches from the 20% to the 80% quantile. Press a name to see it alone."


def build(results: Results) -> Markup:
    """A plot for each benchmark whose rows lie along an axis; empty where none has two sizes."""
    rows = [row for row in results.rows if row.axis and _number(row.sizes.get(row.axis)) is not None and timed(row)]
    names = dict.fromkeys(entry.contestant for row in rows for entry, _ in timed(row))
    numbers = {name: index for index, name in enumerate(sorted(names, key=lambda name: name != "bp"))}
    curves = [curve for curve in grouped(rows, _group).values() if len({_along(row) for row in curve}) > 1]
    if not curves:
        return Markup()
    parts = [element("p", NOTE, class_="note")]
    for family, members in grouped(curves, lambda curve: curve[0].family).items():
        benchmarks = grouped(members, lambda curve: (curve[0].benchmark, _others(curve[0]))).values()
        first = [_curve(same[0], numbers) for same in benchmarks]
        others = [_curve(curve, numbers) for same in benchmarks for curve in same[1:]]
        parts.append(element("h4", family))
        parts.append(charts.folded(first, others, "curves", "cards narrow"))
    return html(*parts)


def _number(size: Size | None) -> float | None:
    return None if size is None or isinstance(size, (str, bool)) else float(size)


def _along(row: Row) -> float:
    return _number(row.sizes[row.axis]) or 0.0


def _others(row: Row) -> str:
    """The sizes that a curve holds fixed."""
    return ", ".join(f"{name} {size}" for name, size in row.sizes.items() if name != row.axis)


def _group(row: Row) -> tuple[str, ...]:
    return (row.family, row.benchmark, row.precision, row.axis, _others(row))


def _curve(rows: Sequence[Row], numbers: dict[str, int]) -> Markup:
    rows = sorted(rows, key=_along)
    lines: dict[str, list[tuple[float, Times]]] = {}
    for row in rows:
        for entry, found in timed(row):
            lines.setdefault(entry.contestant, []).append((_along(row), found))
    scale = logarithmic if _along(rows[0]) > 0.0 else linear
    x = scale(map(_along, rows), rows[0].axis.replace("_", " "), units.size, marked=map(_along, rows))
    ends = [end for line in lines.values() for _, t in line for end in (t.low, t.high, t.median) if end > 0.0]
    y = logarithmic(ends, "time", units.seconds)
    present = [(name, numbers[name]) for name in numbers if name in lines]
    drawn = [(name, number, lines[name]) for name, number in present]
    layers = charts.stretched(*(_line(x, y, line, number) for _, number, line in drawn))
    marks = html(*(_marks(x, y, line, number, name) for name, number, line in drawn))
    fixed = " · ".join(filter(None, [rows[0].precision, _others(rows[0])]))
    title = element("h4", rows[0].benchmark, element("small", fixed))
    says = f"{rows[0].benchmark}: time by {rows[0].axis}, {len(drawn)} contestants"
    drawing = charts.plot(x, y, layers, marks, says=says)
    return element("div", title, charts.legend(present, buttons=True), drawing, class_="card", data_group=True)


def _line(x: Axis, y: Axis, line: list[tuple[float, Times]], number: int) -> Markup:
    low = [(at, found.low) for at, found in line]
    high = [(at, found.high) for at, found in line]
    middle = charts.line(x, y, [(at, found.median) for at, found in line], "line", number)
    return html(charts.band(x, y, low, high, number), middle)


def _marks(x: Axis, y: Axis, line: list[tuple[float, Times]], number: int, name: str) -> Markup:
    tips = [f"{name}, {x.title} {at:g}\n{units.seconds(found.median)} ({spread(found)})" for at, found in line]
    points = [(at, found.median) for at, found in line]
    return html(*(charts.mark(x, y, point, number, tip) for point, tip in zip(points, tips, strict=True)))
