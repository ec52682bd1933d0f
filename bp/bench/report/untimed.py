"""Who was not timed and why: wrong and failed first, the same reason of one contestant in one line."""

from bp.bench import units
from bp.bench.report.figures import grouped
from bp.bench.report.markup import Markup, chip, element, html
from bp.bench.results import Results, Status

ORDER: tuple[Status, ...] = ("wrong", "failed", "not installed", "left out", "checked")
SHOWN = 3  # rows named before the fold
NOTE = "Error is in units of what is allowed: right is at most 1."


def build(results: Results) -> Markup:
    """A table of contestants without times; empty where everybody was timed."""
    found = [(row, entry) for row in results.rows for entry in row.entries if entry.status in ORDER]
    groups = grouped(found, lambda pair: (pair[1].status, pair[1].contestant, pair[1].reason))
    lines = []
    for (status, contestant, reason), pairs in sorted(groups.items(), key=lambda item: ORDER.index(item[0][0])):
        errors = [entry.error for _, entry in pairs if entry.error is not None]
        cells = [
            chip(status),
            html(contestant),
            html(reason or units.DASH),
            html(f"{max(errors):.3g}" if errors else units.DASH),
        ]
        rows = _names([row.key for row, _ in pairs])
        lines.append(element("tr", *(element("td", cell) for cell in (*cells, rows))))
    if not lines:
        return Markup()
    heads = (element("th", head, scope="col") for head in ("status", "contestant", "reason", "largest error", "rows"))
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *lines), class_="untimed")
    box = element("div", table, class_="scroll card", tabindex="0", role="region", aria_label="Not timed")
    return html(element("p", NOTE, class_="note"), box)


def _names(names: list[str]) -> Markup:
    shown = element("ul", *(element("li", name) for name in names[:SHOWN]))
    if len(names) <= SHOWN:
        return shown
    more = element("ul", *(element("li", name) for name in names[SHOWN:]))
    return html(shown, element("details", element("summary", f"{len(names) - SHOWN} more"), more))
