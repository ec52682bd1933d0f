"""Every row against the machine's limits: the roofline, and the percent of the limit by bytes moved."""

import math
from collections.abc import Iterator, Sequence

from bp.bench import units
from bp.bench.report import charts
from bp.bench.report.axes import Axis, linear, logarithmic
from bp.bench.report.figures import describe, families, times
from bp.bench.report.markup import Markup, element, html
from bp.bench.results import Limits, Results, Row

SAME = 1.25  # peaks and bandwidths nearer than this share a line
ROOM = 0.45  # of the width: what the words above a slope may take on a telephone
CLOSE = 0.07  # of the height: where roofs are nearer, the words of the lower one go under it
NOTE = "A mark is a row, as bp runs it. Point at one or touch it to read it; press a family to see it alone."


def build(results: Results) -> Markup:
    """Both plots under one legend; either is left out where no row has what it shows."""
    numbers = families(results.rows)
    plots = [_roofline(results.rows, results.limits, numbers), _shares(results.rows, numbers)]
    shown = [plot for plot in plots if plot]
    if not shown:
        return Markup()
    present = [
        (family, index) for family, index in numbers.items() if any(f'data-series="{index}"' in p for p in shown)
    ]
    return html(
        element("p", NOTE, class_="note"), charts.legend(present, buttons=True), element("div", *shown, class_="pair")
    )


def _roofline(rows: Sequence[Row], limits: Limits, numbers: dict[str, int]) -> Markup:
    dots = []
    for row in rows:
        ours = times(row)
        if ours is not None and row.flops > 0.0 and row.nbytes > 0.0:
            dots.append((row, row.flops / row.nbytes, row.flops / ours.median))
    if not dots:
        return Markup()
    slopes, roofs = _slopes(limits), _roofs(limits)
    ridges = [rate / slope for _, rate in roofs for slope in slopes]
    around = [ridge * factor for ridge in ridges for factor in (0.2, 8.0)]  # both arms of the roof are to be seen
    x = logarithmic([*(at for _, at, _ in dots), *around], "FLOP per byte", units.short)
    heights = [rate * factor for _, rate in roofs for factor in (0.1, 1.5)]
    y = logarithmic([*(rate for *_, rate in dots), *heights], "FLOP/s", units.short)
    drawn = [*_drawn_slopes(x, y, slopes, roofs), *_drawn_roofs(x, y, slopes, roofs)]
    lines, words = charts.stretched(*(line for line, _ in drawn)), html(*(word for _, word in drawn))
    marks = html(*(charts.mark(x, y, (at, rate), numbers[row.family], describe(row)) for row, at, rate in dots))
    drawing = charts.plot(x, y, lines, marks, words, says=f"Roofline of {len(dots)} rows")
    return element("div", element("h4", "Roofline: FLOP/s by FLOP per byte"), drawing, class_="card")


def _slopes(limits: Limits) -> list[float]:
    """Bytes a second of the largest copy, and of copies in caches where those are faster."""
    rates = [rate for _, rate in limits.copy if rate > 0.0]
    if not rates:
        return []
    return [rates[-1], max(rates)] if max(rates) > SAME * rates[-1] else [rates[-1]]


def _roofs(limits: Limits) -> list[tuple[str, float]]:
    """(precisions, FLOP/s) from low to high, near ones joined."""
    roofs: list[tuple[str, float]] = []
    for precision, rate in sorted(limits.peak.items(), key=lambda item: item[1]):
        if roofs and rate < SAME * roofs[-1][1]:
            roofs[-1] = (f"{roofs[-1][0]}, {precision}", rate)
        elif rate > 0.0:
            roofs.append((precision, rate))
    return roofs


def _drawn_slopes(
    x: Axis, y: Axis, slopes: Sequence[float], roofs: Sequence[tuple[str, float]]
) -> Iterator[tuple[Markup, Markup]]:
    """Lines and their words: bytes a second times FLOP per byte, up to the highest roof."""
    top = roofs[-1][1] if roofs else y.high
    for slope, text, class_ in zip(slopes, ("copy", "in cache"), ("roof", "roof far"), strict=False):
        start, end = max(x.low, y.low / slope), min(x.high, top / slope)
        if start >= end:
            continue
        line = charts.line(x, y, [(start, start * slope), (end, end * slope)], class_)
        said = f"{text} {units.bandwidth(slope)}"
        if class_ == "roof far" and x.place(end) > ROOM:
            yield line, charts.label(x, y, (end, end * slope), said, "end", -10, 0)
            continue
        # Below the slope of the largest copy, left of where the lowest roof begins: few marks are there.
        at = start * (min([end, *(rate / slope for _, rate in roofs[:1])]) / start) ** 0.7
        yield line, charts.label(x, y, (at, at * slope), said, "start", 8, 12)


def _drawn_roofs(
    x: Axis, y: Axis, slopes: Sequence[float], roofs: Sequence[tuple[str, float]]
) -> Iterator[tuple[Markup, Markup]]:
    """Lines and their words, from the slope of the largest copy to the right end."""
    above = math.inf
    for precisions, rate in reversed(roofs):
        start = max(x.low, rate / slopes[0]) if slopes else x.low
        under = above < math.inf and y.place(above) - y.place(rate) < CLOSE
        said = f"{precisions} {units.short(rate)}"
        word = charts.label(x, y, (x.high, rate), said, "end", 0, 13 if under else -5)
        yield charts.line(x, y, [(start, rate), (x.high, rate)], "roof"), word
        above = rate


def _shares(rows: Sequence[Row], numbers: dict[str, int]) -> Markup:
    dots = [(row, row.nbytes, row.percent) for row in rows if row.percent is not None and row.nbytes > 0.0]
    if not dots:
        return Markup()
    x = logarithmic((moved for _, moved, _ in dots), "bytes moved", units.nbytes)
    y = linear([100.0, *(percent for *_, percent in dots)], "percent of the limit", units.percent)
    full = charts.line(x, y, [(x.low, 100.0), (x.high, 100.0)], "roof")
    marks = [charts.mark(x, y, (moved, percent), numbers[row.family], describe(row)) for row, moved, percent in dots]
    drawing = charts.plot(x, y, charts.stretched(full), *marks, says=f"Percent of the limit of {len(marks)} rows")
    return element("div", element("h4", "Percent of the limit by bytes moved"), drawing, class_="card")
