"""bp against each peer in a map: benchmarks down, shapes across, each cell the peer's time over bp's."""

import math
from collections.abc import Sequence

from bp.bench import units
from bp.bench.report.figures import GLYPHS, grouped, spread, timed, times, verdict
from bp.bench.report.markup import Markup, element, html
from bp.bench.results import Results, Row

FULL = 2.5  # at this ratio, and at its inverse, a colour is full
BEST = "fastest peer"


def build(results: Results) -> Markup:
    """A choice of peers and the maps of each; empty where no row has bp and a peer."""
    rows = [row for row in results.rows if times(row) is not None]
    peers = list(dict.fromkeys(entry.contestant for row in rows for entry, _ in timed(row) if not entry.ours))
    if not peers:
        return Markup()
    choices = [None, *peers] if len(peers) > 1 else peers
    options = [element("option", BEST if peer is None else peer, value=str(n)) for n, peer in enumerate(choices)]
    choose = element("label", "against ", element("select", *options, data_choose=True), class_="choose")
    titles = [f"Against {peer or 'the fastest peer of each row'}" for peer in choices]
    maps = [
        element("div", element("h4", title), _maps(rows, peer), data_choice=str(number))
        for number, (title, peer) in enumerate(zip(titles, choices, strict=True))
    ]
    return html(_key(), choose if len(choices) > 1 else None, *maps)


def _key() -> Markup:
    note = "Time of the peer / time of bp. ▲ bp is faster, ▼ slower, ≈ level: their 20% to 80% quantiles overlap."
    steps = [_cell_of(ratio, glyph) for ratio, glyph in ((0.4, "▼"), (0.63, "▼"), (1.0, "≈"), (1.6, "▲"), (2.5, "▲"))]
    scale = element("table", element("tbody", element("tr", *steps)), class_="heat", aria_hidden="true")
    return html(element("p", note, class_="note"), element("div", scale, class_="scroll key"))


def against(row: Row, peer: str | None) -> tuple[float, str] | None:
    """(that peer's time / bp's, whose time); None for the fastest peer; None where either has no time."""
    if peer is None:
        return (row.ratio, row.best_peer) if row.ratio is not None and row.ratio > 0.0 else None
    ours, theirs = times(row), times(row, peer)
    return None if ours is None or theirs is None else (theirs.median / ours.median, peer)


def _maps(rows: Sequence[Row], peer: str | None) -> Markup:
    """Benchmarks of a family with the same shapes share a map."""
    compared = [row for row in rows if against(row, peer) is not None]
    benchmarks = grouped(compared, lambda row: (row.family, row.benchmark))
    maps = grouped(benchmarks.items(), lambda item: (item[0][0], tuple(dict.fromkeys(row.shape for row in item[1]))))
    tables = [
        _map(family, shapes, [row for _, members in found for row in members], peer)
        for (family, shapes), found in maps.items()
    ]
    return element("div", *tables, class_="maps")


def _map(family: str, shapes: tuple[str, ...], rows: Sequence[Row], peer: str | None) -> Markup:
    lines = []
    for (benchmark, precision), members in grouped(rows, lambda row: (row.benchmark, row.precision)).items():
        by_shape = grouped(members, lambda row: row.shape)
        cells = [_cell(by_shape[shape][0], peer) if shape in by_shape else element("td") for shape in shapes]
        lines.append(element("tr", element("th", benchmark, element("small", precision), scope="row"), *cells))
    heads = [element("th", _breakable(shape), scope="col") for shape in shapes]
    table = element(
        "table",
        element("thead", element("tr", element("th", family, scope="col"), *heads)),
        element("tbody", *lines),
        class_="heat",
    )
    return element("div", table, class_="scroll", tabindex="0", role="region", aria_label=f"{family}, ratio to peer")


def _breakable(shape: str) -> Markup:
    """A shape that may go on in the next line after an x."""
    return Markup("x<wbr>").join(shape.split("x"))


def _cell(row: Row, peer: str | None) -> Markup:
    compared = against(row, peer)
    if compared is None:
        return element("td")
    ratio, whose = compared
    measured = [(name, times(row, name)) for name in ("bp", whose)]
    tip = "\n".join(f"{name} {units.seconds(found.median)} ({spread(found)})" for name, found in measured if found)
    return _cell_of(ratio, GLYPHS[verdict(row, whose, ratio)], tip)


def _cell_of(ratio: float, glyph: str, tip: str | None = None) -> Markup:
    depth = min(abs(math.log(ratio)) / math.log(FULL), 1.0)
    class_ = "faster" if ratio >= 1.0 else "slower"
    style = f"--depth:{100 * depth:.0f}%"
    return element("td", f"{glyph} {units.ratio(ratio)}", class_=class_, style=style, data_tip=tip)
