"""Plots as SVG whose text and marks keep their size at every width: places are percentages, lines are stretched."""

from collections.abc import Iterable, Sequence

from bp.bench import units
from bp.bench.report.axes import Axis
from bp.bench.report.markup import Markup, element, html

Point = tuple[float, float]

SHAPES = [
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "M-4-4h8v8h-8z",
    "M0-5.6L5.6 0L0 5.6L-5.6 0z",
    "M0-5.2L5.2 4H-5.2z",
]
COLORS = 8
STRETCH = 1000  # units of a stretched layer along both sides


def share(place: float) -> str:
    return f"{100.0 * place:.2f}%"


def shapes() -> Markup:
    """The marks, and the caps of whiskers, once for the whole page."""
    paths = html(*(element("path", id=f"mark-{index}", d=shape) for index, shape in enumerate(SHAPES)))
    cap = element("marker", element("path", d="M0-4V4"), id="cap", markerUnits="userSpaceOnUse")
    return element("svg", element("defs", paths, cap), width="0", height="0", class_="shapes", aria_hidden="true")


def series(index: int) -> str:
    """The class that gives a series its colour."""
    return f"s{index % COLORS}"


def symbol(index: int, x: str, y: str, tip: str | None = None) -> Markup:
    """A mark: colour and shape tell series apart, so neither is needed alone."""
    shape = (index + index // COLORS) % len(SHAPES)
    class_ = f"mark {series(index)}"
    return element("use", href=f"#mark-{shape}", x=x, y=y, class_=class_, data_tip=tip, data_series=str(index))


def mark(x: Axis, y: Axis, point: Point, index: int, tip: str) -> Markup:
    return symbol(index, share(x.place(point[0])), share(1.0 - y.place(point[1])), tip)


def line(x: Axis, y: Axis, points: Sequence[Point], class_: str, index: int | None = None) -> Markup:
    """A line through the points; goes into `stretched`."""
    return _path(x, y, points, class_, index, closed=False)


def band(x: Axis, y: Axis, low: Sequence[Point], high: Sequence[Point], index: int) -> Markup:
    """What lies between two lines; goes into `stretched`."""
    return _path(x, y, [*low, *reversed(high)], "band", index, closed=True)


def _path(x: Axis, y: Axis, points: Sequence[Point], class_: str, index: int | None, closed: bool) -> Markup:
    places = [f"{STRETCH * x.place(a):.1f} {STRETCH * (1.0 - y.place(b)):.1f}" for a, b in points]
    color = None if index is None else str(index)
    name = class_ if index is None else f"{class_} {series(index)}"
    return element("path", d="M" + "L".join(places) + ("Z" if closed else ""), class_=name, data_series=color)


def stretched(*paths: Markup) -> Markup:
    """A layer of lines that fills the plot; the width of the lines does not stretch with it."""
    box = f"0 0 {STRETCH} {STRETCH}"
    return element("svg", *paths, viewBox=box, preserveAspectRatio="none", width="100%", height="100%")


def label(x: Axis, y: Axis, point: Point, text: str, anchor: str, dx: int, dy: int) -> Markup:
    """Words at a point of the plot; anchor: start or end."""
    left, top = share(x.place(point[0])), share(1.0 - y.place(point[1]))
    return element("text", text, x=left, y=top, dx=str(dx), dy=str(dy), text_anchor=anchor, class_="label")


def plot(x: Axis, y: Axis, *layers: Markup, says: str) -> Markup:
    """Axes, grid and layers in a box. says: for who cannot see it."""
    drawing = element("svg", _grid(x, y), *layers, role="img", aria_label=says)
    return element(
        "div",
        element("div", y.title, class_="y-title"),
        element("div", drawing, class_="area"),
        element("div", x.title, class_="x-title"),
        class_="plot",
    )


def _grid(x: Axis, y: Axis) -> Markup:
    parts: list[Markup] = []
    for tick in y.ticks(0.08):
        at = share(1.0 - y.place(tick))
        parts.append(element("line", x1="0", x2="100%", y1=at, y2=at))
        parts.append(element("text", units.trimmed(y.text(tick)), x="0", y=at, dx="-8", dy="4", text_anchor="end"))
    for tick in x.ticks(0.13):
        at = share(x.place(tick))
        parts.append(element("line", x1=at, x2=at, y1="0", y2="100%"))
        parts.append(element("text", units.trimmed(x.text(tick)), x=at, y="100%", dy="18", text_anchor="middle"))
    return element("g", *parts, class_="grid")


def legend(names: Iterable[tuple[str, int]], buttons: bool = False) -> Markup:
    """What the colours and shapes stand for. buttons: each shows its series alone, in all plots of the same section."""
    items = []
    for name, index in names:
        content = html(element("svg", symbol(index, "50%", "50%"), width="14", height="14", aria_hidden="true"), name)
        if buttons:
            content = element("button", content, type="button", data_alone=str(index), aria_pressed="false")
        items.append(element("li", content))
    return element("ul", *items, class_="legend")


def bar(length: float, class_: str, low: float | None = None, high: float | None = None, cut: bool = False) -> Markup:
    """A bar of a share of its box, with a whisker from low to high. cut: it goes on beyond the box."""
    parts = [element("rect", width=share(length), height="100%", rx="2")]
    if low is not None and high is not None and not cut:
        parts.append(element("line", x1=share(low), x2=share(high), y1="50%", y2="50%"))
    return element("svg", *parts, class_=f"bar {class_}{' cut' if cut else ''}", aria_hidden="true")


def folded(shown: Sequence[Markup], others: Sequence[Markup], noun: str, class_: str) -> Markup:
    """Cards, and more of them in a fold."""
    first = element("div", *shown, class_=class_)
    if not others:
        return first
    summary = element("summary", f"More {noun} ({len(others)})")
    return html(first, element("details", summary, element("div", *others, class_=class_), class_="fold"))
