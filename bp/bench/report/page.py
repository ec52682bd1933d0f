"""The page: a panel for each run, with a switch between them, in one file with its style and its script."""

from collections.abc import Callable, Sequence
from importlib.resources import files
from string import Template

from bp.bench.report import charts, curves, heatmap, ladder, overview, roofline, summary, table, untimed
from bp.bench.report.markup import Markup, element, html
from bp.bench.results import Results

SECTIONS: list[tuple[str, str, Callable[[Results], Markup]]] = [
    ("families", "Families", summary.build),
    ("limits", "Against the machine", roofline.build),
    ("peers", "Against the peers", heatmap.build),
    ("ladder", "The ladder", ladder.build),
    ("curves", "As sizes grow", curves.build),
    ("rows", "All rows", table.build),
    ("untimed", "Not timed", untimed.build),
]


def page(runs: Sequence[Results]) -> str:
    """The whole document."""
    names = [overview.name(run.about) for run in runs]
    tabs = [_tab(number, name, run.about.date) for number, (name, run) in enumerate(zip(names, runs, strict=True))]
    switch = element("div", *tabs, role="tablist", aria_label="Runs", class_="runs") if len(runs) > 1 else None
    panels = [_panel(number, name, run) for number, (name, run) in enumerate(zip(names, runs, strict=True))]
    here = files(__package__)
    return Template((here / "page.html").read_text("utf-8")).substitute(
        title=html(f"bp bench · {', '.join(names)}"),
        style=(here / "style.css").read_text("utf-8"),
        script=(here / "script.js").read_text("utf-8"),
        switch=html(switch),
        panels=html(charts.shapes(), *panels),
    )


def _tab(number: int, name: str, date: str) -> Markup:
    panel = f"run-{number}"
    return element("button", name, element("small", date), type="button", role="tab", aria_controls=panel)


def _panel(number: int, name: str, run: Results) -> Markup:
    built = [(f"run-{number}-{slug}", title, build(run)) for slug, title, build in SECTIONS]
    shown = [(slug, title, content) for slug, title, content in built if content]
    links = [element("a", title, href=f"#{slug}") for slug, title, _ in shown]
    ran = element("div", overview.about(run), overview.limits(run.limits), class_="pair")
    return element(
        "section",
        element("h2", name),
        overview.tiles(run),
        element("p", overview.METHOD, class_="note"),
        ran,
        None if run.rows else element("p", "No rows: this run measured nothing.", class_="card empty"),
        element("nav", *links, aria_label="Sections") if links else None,
        *(
            element("section", element("h3", title), content, id=slug, data_group=True)
            for slug, title, content in shown
        ),
        class_="run",
        id=f"run-{number}",
        aria_label=name,
    )
