"""What opens under a row of the table: its sizes, the least work, and every contestant's figures."""

from collections.abc import Sequence

from bp.bench import units
from bp.bench.report.figures import QUANTILES, spread
from bp.bench.report.markup import Markup, chip, element, html
from bp.bench.results import Entry, Row


def sizes(row: Row) -> Markup:
    """The sizes by name, the least work, and what the machine said of itself meanwhile."""
    words = [f"{name} {size}" for name, size in row.sizes.items()]
    words += [units.flops(row.flops)] if row.flops > 0.0 else []
    words += [units.nbytes(row.nbytes)] if row.nbytes > 0.0 else []
    words += [f"at best {units.seconds(row.limit_seconds)}"] if row.limit_seconds is not None else []
    clocks = [units.clock(name, value) for name, value in row.clocks.items()]
    clocks += [f"{reason} {units.percent(100 * share)} of the time" for reason, share in row.throttled.items()]
    refused = element("p", f"refused: {row.refused}") if row.refused else None
    return html(*(element("p", " · ".join(line)) for line in (words, clocks) if line), refused)


def contestants(row: Row) -> Markup:
    """A line for each, with the facts that any of them has; the reason of who was not timed."""
    facts = list(dict.fromkeys(name for entry in row.entries for name in entry.facts))
    named = [name.replace("_", " ") for name in facts]
    heads = ["contestant", "median", QUANTILES, "runs", "error / allowed", *named, "status"]
    return element(
        "table",
        element("thead", element("tr", *(element("th", head) for head in heads))),
        element("tbody", *(_contestant(entry, facts) for entry in row.entries)),
        class_="contestants",
    )


def _contestant(entry: Entry, facts: Sequence[str]) -> Markup:
    found = entry.times
    figures = [units.DASH] * 3 if found is None else [units.seconds(found.median), spread(found), str(found.runs)]
    figures.append(units.DASH if entry.error is None else units.significant(entry.error))
    figures += [units.fact(name, entry.facts[name]) if name in entry.facts else units.DASH for name in facts]
    reason = element("small", entry.reason) if entry.reason else None
    return element(
        "tr",
        element("th", entry.contestant),
        *(element("td", figure) for figure in figures),
        element("td", chip(entry.status), reason),
        class_="ours" if entry.ours else None,
    )
