"""Rows that several variants of bp ran: a bar of time for each rung of the ladder, and for the peers between them."""

from bp.bench import units
from bp.bench.report import charts
from bp.bench.report.figures import grouped, timed, times
from bp.bench.report.markup import Markup, chip, element, html
from bp.bench.results import Entry, Results, Row, Times

LONGEST = 8.0  # times the fastest: a bar that would be longer is cut, so that the short ones can be told apart
NOTE = (
    "Time, fastest first: bp and its variants in colour, peers in grey. Shown is the largest row of each benchmark and "
    "precision, more are in the folds. Whiskers: 20% to 80% quantile. "
    f"A bar with a broken end takes more than {LONGEST:.0f} times the fastest; its number says how much."
)


def build(results: Results) -> Markup:
    """A card for each row, by family; empty where no row has two variants of bp."""
    rows = [row for row in results.rows if sum(entry.ours for entry, _ in timed(row)) > 1]
    if not rows:
        return Markup()
    parts = [element("p", NOTE, class_="note")]
    for family, members in grouped(rows, lambda row: row.family).items():
        benchmarks = grouped(members, lambda row: (row.benchmark, row.precision)).values()
        largest = [max(same, key=lambda row: (row.flops, row.nbytes)) for same in benchmarks]
        others = [row for same in benchmarks for row in same if row not in largest]
        parts.append(element("h4", family))
        parts.append(charts.folded([_card(row) for row in largest], [_card(row) for row in others], "shapes", "cards"))
    return html(*parts)


def _card(row: Row) -> Markup:
    measured = sorted(timed(row), key=lambda pair: pair[1].median)
    scale = min(measured[-1][1].median * 1.05, LONGEST * measured[0][1].median)
    scale = max([scale, *(found.high for _, found in measured if found.median <= scale)])
    ours = times(row)
    bars = [_bar(entry, found, scale, ours) for entry, found in measured]
    bars += [_absent(entry) for entry in row.entries if entry.times is None]
    title = element("h5", row.benchmark, element("small", " · ".join(filter(None, [row.shape, row.precision]))))
    return element("div", title, element("ul", *bars, class_="bars"), class_="card")


def _bar(entry: Entry, found: Times, scale: float, ours: Times | None) -> Markup:
    cut = found.median > scale
    class_ = "ours" if entry.contestant == "bp" else "variant" if entry.ours else "peer"
    length, low, high = (min(value / scale, 1.0) for value in (found.median, found.low, found.high))
    beside = None
    if ours is not None and entry.contestant != "bp":
        beside = element("small", units.ratio(found.median / ours.median))
    return element(
        "li",
        element("span", entry.contestant, class_="who"),
        charts.bar(length, class_, low, high, cut),
        element("span", units.seconds(found.median), beside, class_="what"),
        class_=class_,
    )


def _absent(entry: Entry) -> Markup:
    why = element("span", chip(entry.status), " ", entry.reason, class_="why")
    return element("li", element("span", entry.contestant, class_="who"), why)
