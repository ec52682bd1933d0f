"""What ran, on what, how it went, and what the machine can do at most."""

from collections import Counter
from collections.abc import Mapping
from statistics import median

from bp.bench import units
from bp.bench.report import charts
from bp.bench.report.axes import linear, logarithmic
from bp.bench.report.figures import geometric_mean, ratios
from bp.bench.report.markup import Markup, element, html
from bp.bench.results import About, Limits, Results

METHOD = (
    "Each result is checked against float64 before it is timed. Times are medians of runs taken in turns; "
    "whiskers and bands reach from the 20% to the 80% quantile."
)


def name(about: About) -> str:
    """What a run is called: the device and the name of the processor or GPU that it stands for."""
    wanted = "cpu" if about.device == "cpu" else "gpu"
    named = [value for key, value in about.machine.items() if wanted in key.casefold()]
    return " · ".join([about.device, *(named or list(about.machine.values()))[:1]])


def tiles(results: Results) -> Markup:
    """The run in a few large figures."""
    rows = results.rows
    states: Counter[str] = Counter(entry.status for row in rows for entry in row.entries)
    found = []
    if against := ratios(rows):
        note = f"geometric mean of {units.counted(len(against), 'row')}; above 1 bp is faster"
        found.append(("the speed of the fastest peer", units.ratio(geometric_mean(against)), note, ""))
    if reached := [row.percent for row in rows if row.percent is not None]:
        found.append(
            (
                "of the machine's limit",
                units.percent(median(reached)),
                f"median of {units.counted(len(reached), 'row')}",
                "",
            )
        )
    found.append(("row" if len(rows) == 1 else "rows", str(len(rows)), "", ""))
    found.append(("right", str(states["timed"] + states["checked"]), "contestants, over all rows", ""))
    for status, note in (("wrong", "not timed"), ("failed", "not timed")):
        found.append((status, str(states[status]), note if states[status] else "", "bad" if states[status] else ""))
    if absent := states["not installed"] + states["left out"]:
        found.append(("absent", str(absent), "not installed or left out", ""))
    return element("ul", *(_tile(*tile) for tile in found), class_="tiles")


def _tile(what: str, figure: str, note: str, class_: str) -> Markup:
    small = element("small", note) if note else None
    return element("li", element("strong", figure), element("span", what), small, class_=class_ or None)


def about(results: Results) -> Markup:
    """Machine, versions, settings, command; and who took no part."""
    ran = results.about
    facts = {"date": ran.date, "revision": ran.revision, "device": ran.device, "took": units.seconds(results.seconds)}
    groups = [("Run", facts), ("Machine", ran.machine), ("Versions", ran.versions), ("Settings", ran.settings)]
    parts = [element("div", element("h4", title), _list(values)) for title, values in groups if values]
    command = html(element("h4", "Command"), element("pre", element("code", ran.command))) if ran.command else None
    missing = None
    if results.missing:
        missing = html(element("h4", "Peers that took no part"), _list(results.missing))
    return element("div", element("div", *parts, class_="facts"), command, missing, class_="card")


def _list(values: Mapping[str, str]) -> Markup:
    pairs = (html(element("dt", key), element("dd", value)) for key, value in values.items())
    return element("dl", *pairs)


def limits(measured: Limits) -> Markup:
    """Copy bandwidth by size, peak by precision, launch time. Empty where none was measured."""
    parts = []
    copies = [(moved, rate) for moved, rate in measured.copy if moved > 0.0 and rate > 0.0]
    if copies:
        parts.append(element("div", element("h4", "Copy bandwidth by bytes moved"), _copies(copies)))
    if peaks := {precision: rate for precision, rate in measured.peak.items() if rate > 0.0}:
        parts.append(element("div", element("h4", "Peak of a large matrix product"), _peaks(peaks)))
    if measured.launch_seconds is not None:
        figure = element("p", element("strong", units.seconds(measured.launch_seconds)), class_="figure")
        note = element("p", "one launch of the smallest possible piece of work", class_="note")
        parts.append(element("div", element("h4", "Launch"), figure, note))
    return element("div", *parts, class_="card limits") if parts else Markup()


def _copies(copies: list[tuple[float, float]]) -> Markup:
    x = logarithmic((moved for moved, _ in copies), "bytes moved", units.nbytes)
    y = linear((rate for _, rate in copies), "bytes a second", units.bandwidth)
    marks = [
        charts.mark(x, y, (moved, rate), 0, f"{units.nbytes(moved)}\n{units.bandwidth(rate)}") for moved, rate in copies
    ]
    says = "; ".join(f"{units.nbytes(moved)}: {units.bandwidth(rate)}" for moved, rate in copies)
    return charts.plot(x, y, charts.stretched(charts.line(x, y, copies, "line", 0)), *marks, says=f"Copies. {says}")


def _peaks(peaks: dict[str, float]) -> Markup:
    longest = max(peaks.values())
    items = [
        element(
            "li",
            element("span", precision, class_="who"),
            charts.bar(rate / longest, "ours"),
            element("span", units.compute(rate), class_="what"),
        )
        for precision, rate in peaks.items()
    ]
    return element("ul", *items, class_="bars")
