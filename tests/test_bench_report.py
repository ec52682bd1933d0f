"""The report of benchmark runs: what is in the page, that it is safe and reproducible, and that a browser runs it."""

import itertools
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_results import results

from bp.bench import units
from bp.bench.report import write_html
from bp.bench.report.axes import linear, logarithmic
from bp.bench.report.markup import Markup, element, html
from bp.bench.report.page import page
from bp.bench.results import About, Entry, Limits, Results, Row, Size, Times
from bp.errors import ConfigurationError


class Read(HTMLParser):
    """A page taken apart: elements with their attributes, text, and the faults of its nesting."""

    VOID = ("meta", "input", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.faults: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        self.faults += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.elements if attribute in attributes]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def part(text: str, slug: str, run: int = 0) -> str:
    """One section of a run, as HTML; "" where the page does not have it."""
    match = re.search(rf'<section id="run-{run}-{slug}".*?</section>', text, re.DOTALL)
    return match[0] if match else ""


GPU, CPU = results(True), results(False)
SECTIONS = ("families", "limits", "peers", "ladder", "curves", "rows", "untimed")
INSTANT = Entry("bp", True, "timed", times=Times(1e-6, 1e-6, 1e-6, 1))
BARE = Row("shape", "transpose", {"rows": 3}, "fp32", 0.0, 0.0, [INSTANT])
UNLIMITED = [replace(row, limit_seconds=None, percent=None, bound="") for row in CPU.rows]
ALONE = [replace(row, ratio=None, best_peer="", entries=row.entries[:1]) for row in CPU.rows]
RUNS = {
    "gpu and cpu": [GPU, CPU],
    "one": [GPU],
    "nothing measured": [replace(CPU, rows=[], limits=Limits(), missing={})],
    "a row of nothing but a time": [replace(CPU, rows=[BARE], limits=Limits())],
    "nobody ran": [replace(CPU, rows=[replace(BARE, entries=[])])],
    "no limits": [replace(CPU, rows=UNLIMITED, limits=Limits())],
    "no peers": [replace(CPU, rows=ALONE)],
    "copies alone": [replace(GPU, limits=Limits(copy=[(1e6, 2e9)]))],
    "peaks alone": [replace(GPU, limits=Limits(peak={"fp32": 1e12}))],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_page_is_well_formed_and_needs_nothing_from_outside(name: str):
    text = page(RUNS[name])
    read = Read(text)
    assert read.faults == []
    identities = read.values("id")
    assert len(identities) == len(set(identities))
    targets = read.values("href")
    assert all(target.startswith("#") and target[1:] in identities for target in targets)
    assert set(read.values("aria-controls")) <= set(identities)
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in read.elements}
    assert not read.values("src")
    assert (read.count("style"), read.count("script")) == (1, 1)
    style, script = re.search(r"<style>(.*)</style>.*<script>(.*)</script>", text, re.DOTALL).groups()
    assert set(re.findall(r"url\([^)]*\)|@import", style)) <= {"url(#cap)"}
    assert not re.search(r"fetch|XMLHttpRequest|import\b|https?:", script)
    assert not re.search(r"\bnan\b|\binf\b|None|\{\w", text[text.index("<main>") : text.index("</main>")])


def test_the_same_runs_make_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        write_html([results(True), results(False)], tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_no_run_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="at least one run, got none"):
        write_html([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_what_the_data_says_is_text_and_never_html():
    evil = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;"
    entry = Entry(evil, False, "timed", evil, 0.5, Times(1e-6, 1e-6, 2e-6, 3), {evil: 1.0})
    sizes: dict[str, Size] = {evil: 4, "word": evil}
    evils = dict.fromkeys(("family", "benchmark", "precision", "axis", "best_peer"), evil)
    mine = replace(entry, ours=True, contestant=f"bp {evil}")
    row = replace(GPU.rows[0], **evils, clocks={evil: 1.0}, entries=[*GPU.rows[0].entries, entry, mine])
    rows = [replace(row, sizes={**sizes, evil: size}) for size in (4, 8)]
    said = {evil: evil}
    about = About(evil, said, said, evil, evil, evil, said)
    read = Read(page([Results(about, replace(GPU.limits, peak={evil: 1e12}), rows, said)] * 2))
    assert read.faults == []
    assert (read.count("script"), read.count("img")) == (1, 0)
    assert read.text.count(evil) > 50
    assert not any(name.startswith("on") for _, attributes in read.elements for name in attributes)


@pytest.mark.parametrize("run", [GPU, CPU], ids=["gpu", "cpu"])
def test_every_row_and_every_contestant_is_in_the_table(run: Results):
    table = re.search(r'<table class="rows">.*?</tbody></table></div></section>', page([run]), re.DOTALL)[0]
    bodies = re.split(r"(?=<tbody data-family)", table)[1:]
    assert len(bodies) == len(run.rows)
    for row, body in zip(run.rows, bodies, strict=True):
        text = Read(body.removesuffix("</table></div></section>")).text
        for word in (row.family, row.benchmark, row.shape, row.precision):
            assert word in text
        for entry in row.entries:
            assert entry.contestant in text
            assert entry.status in text
            assert entry.reason in text
            assert entry.times is None or units.seconds(entry.times.median) in text


def test_a_refused_row_is_found_and_says_why():
    first, *rows = GPU.rows
    hot = replace(first, ratio=None, percent=None, refused="the GPU was <hot>", throttled={"thermal slowdown": 0.25})
    read = Read(page([replace(GPU, rows=[hot, *rows])]))
    assert read.faults == []
    assert sum("refused" in state.split() for state in read.values("data-state")) == 1
    assert "refused: the GPU was <hot>" in read.text and "thermal slowdown 25% of the time" in read.text


def test_columns_of_numbers_sort_by_numbers():
    read = Read(part(page([GPU]), "rows"))
    keys = [float(key) for key in read.values("data-key")]
    assert len(keys) > 6 * len(GPU.rows)
    assert all(math.isfinite(key) for key in keys)
    medians = [ours.times.median for row in GPU.rows if (ours := row.ours) is not None and ours.times is not None]
    assert set(keys) >= {float(f"{median:.6g}") for median in medians}
    assert set(read.values("aria-sort")) == {"none"}


@pytest.mark.parametrize("name", RUNS)
def test_a_section_is_there_where_it_has_something_to_show(name: str):
    text = page(RUNS[name])
    missing = {slug for slug in SECTIONS if not part(text, slug)}
    assert missing == {
        "nothing measured": set(SECTIONS),
        "a row of nothing but a time": set(SECTIONS) - {"rows"},
        "nobody ran": set(SECTIONS) - {"rows"},
        "no peers": {"peers", "ladder"},
    }.get(name, set())
    assert ("measured nothing" in text) == (name == "nothing measured")
    links = [target for target in Read(text).values("href") if target.startswith("#run-0-")]
    assert links == [f"#run-0-{slug}" for slug in SECTIONS if slug not in missing]


def test_the_head_counts_who_was_right_and_says_who_was_missing():
    entries = [entry for row in GPU.rows for entry in row.entries]
    text = Read(page([GPU])).text
    for status, words in (("wrong", "wrong"), ("failed", "failed")):
        assert f"{sum(entry.status == status for entry in entries)}{words}" in text
    assert f"{sum(entry.status in ('timed', 'checked') for entry in entries)}right" in text
    for word in ("NVIDIA H200", "9ea90ef1c2d3+", "driver", GPU.about.command, "median", "20% to the 80% quantile"):
        assert word in text
    for peer, reason in GPU.missing.items():
        assert peer + reason in text


def test_two_runs_get_a_switch_and_one_gets_none():
    assert [Read(page(runs)).values("role").count("tab") for runs in ([GPU], [GPU, CPU])] == [0, 2]


def against(ratio: float, benchmark: str) -> Row:
    """A row in which the peer takes `ratio` times as long as bp, beyond the noise."""
    times = [Times(1e-5 * factor, 0.99e-5 * factor, 1.01e-5 * factor, 9) for factor in (1.0, ratio)]
    entries = [Entry("bp", True, "timed", times=times[0]), Entry("peer", False, "timed", times=times[1])]
    return replace(BARE, benchmark=benchmark, entries=entries, ratio=ratio, best_peer="peer")


def test_a_family_is_summed_up_by_the_geometric_mean_and_its_worst_row():
    rows = [against(0.5, "slow one"), against(8.0, "fast one"), against(2.0, "third")]
    text = Read(part(page([replace(CPU, rows=rows)]), "families")).text
    assert f"2.00{units.TIMES}" in text
    assert f"0.50{units.TIMES} {units.DASH} 8.00{units.TIMES}" in text
    assert "slow one 3 fp32" in text and "fast one" not in text


def test_the_heat_map_says_who_is_faster_without_colour():
    rows = [against(0.5, "slow"), against(2.0, "fast"), against(1.01, "even")]
    text = Read(part(page([replace(CPU, rows=rows)]), "peers")).text
    for words in ("slowfp32▼ 0.50", "fastfp32▲ 2.00", "evenfp32≈ 1.01"):
        assert words in text


def test_a_row_at_the_limit_lies_on_the_roof():
    limits = Limits(copy=[(1e8, 1e11)], peak={"fp32": 1e12})
    millisecond = replace(INSTANT, times=Times(1e-3, 1e-3, 1e-3, 9))
    at_peak = replace(BARE, flops=1e9, nbytes=1e6, entries=[millisecond])
    rows = [at_peak, replace(at_peak, flops=1e8, nbytes=1e8)]
    text = part(page([replace(CPU, rows=rows, limits=limits)]), "limits")
    paths = re.findall(r'<path d="M([^"]+)" class="roof"', text)
    slope, roof = ([float(number) / 10.0 for number in re.findall(r"[\d.]+", path)] for path in paths)
    marks = re.findall(r'<use href="#mark-\d" x="([\d.]+)%" y="([\d.]+)%" class="mark s0" data-tip', text)
    (_, peak), (at, bandwidth) = [(float(x), float(y)) for x, y in marks]
    assert peak == pytest.approx(roof[1], abs=0.02) == pytest.approx(roof[3], abs=0.02)
    along = (at - slope[0]) / (slope[2] - slope[0])
    assert bandwidth == pytest.approx(slope[1] + along * (slope[3] - slope[1]), abs=0.02)


def test_a_rung_far_behind_is_cut_and_its_number_says_how_far():
    behind = [(f"bp rung={factor}", 1e-5 * factor) for factor in (2, 50)]
    slow = [Entry(name, True, "timed", times=Times(time, time, time, 9)) for name, time in behind]
    row = replace(against(1.5, "ladder"), entries=[*against(1.5, "ladder").entries, *slow])
    text = part(page([replace(CPU, rows=[row])]), "ladder")
    assert len(re.findall(r'class="bar variant cut"', text)) == 1
    assert re.search(r'bp rung=50</span><svg class="bar variant cut".*?500 µs<small>50.0', text)
    lengths = [float(width) for width in re.findall(r'<rect width="([\d.]+)%', text)]
    assert lengths == pytest.approx([12.5, 18.75, 25.0, 100.0], abs=0.01)


def test_a_curve_joins_the_sizes_in_order_for_each_contestant():
    rows = [replace(against(2.0, "b"), sizes={"batch": size, "kind": "x"}, axis="batch") for size in (64, 1, 8)]
    text = part(page([replace(CPU, rows=rows)]), "curves")
    lines = re.findall(r'<path d="M([^"]+)" class="line s\d"', text)
    assert len(lines) == 2
    for line in lines:
        across = [float(point.split()[0]) for point in line.split("L")]
        assert across == sorted(across) and len(across) == 3
    zero = [replace(row, sizes={"workers": size}, axis="workers") for size, row in zip((0, 1, 4), rows, strict=True)]
    assert "workers" in Read(part(page([replace(CPU, rows=zero)]), "curves")).text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.seconds(1.2345e-5), "12.3 µs"),
        (units.seconds(0.9996e-3), "1.00 ms"),
        (units.seconds(2e-12), "0.00200 ns"),
        (units.seconds(181.04), "181 s"),
        (units.seconds(0.0), "0 s"),
        (units.span(9.5e-7, 1.1e-6), f"0.950 {units.DASH} 1.10 µs"),
        (units.bandwidth(3.21e12), "3.21 TB/s"),
        (units.compute(999.9e12), "1.00 PFLOP/s"),
        (units.short(412e12), "412T"),
        (units.trimmed("1.50 GB"), "1.5 GB"),
        (units.trimmed("100 µs"), "100 µs"),
        (units.trimmed("2.00 GB"), "2 GB"),
        (units.ratio(0.043), f"0.043{units.TIMES}"),
        (units.ratio(9.999), f"10.0{units.TIMES}"),
        (units.percent(0.0), "0%"),
        (units.percent(9.96), "10%"),
        (units.size(1024), "1024"),
        (units.size(16384), "16.4k"),
        (units.clock("gpu memory before", 2619.0), "gpu memory before 2619 MHz"),
        (units.clock("gpu watts after", 310.25), "gpu after 310.2 W"),
        (units.clock("gpu celsius after", 41.0), "gpu after 41 °C"),
        (units.fact("launches", 3.0), "3"),
        (units.fact("peak_bytes", 2.5e9), "2.50 GB"),
        (units.fact("samples_per_second", 52129.0), "52.1k"),
    ],
)
def test_numbers_have_three_digits_and_a_unit(text: str, expected: str):
    assert text == expected


@pytest.mark.parametrize("low", [1e-9, 1.0, 3.7e6])
@pytest.mark.parametrize("span", [1.0, 1.02, 1.7, 30.0, 1e4, 1e12])
def test_an_axis_has_ticks_in_order_and_apart(low: float, span: float):
    for axis in (logarithmic([low * span, low], "", str), linear([low, low * span], "", str)):
        ticks = axis.ticks(0.1)
        places = [axis.place(tick) for tick in ticks]
        assert len(ticks) >= 2
        assert all(0.0 <= place <= 1.0 for place in places)
        assert all(b - a >= 0.1 for a, b in itertools.pairwise(places))
        assert 0.0 <= axis.place(low) <= axis.place(low * span) <= 1.0


def test_markup_escapes_text_and_attributes_and_keeps_markup():
    children = ("<&>", element("i", "x"), Markup("<u></u>"), None)
    made = element("b", *children, class_="a", data_tip='"<', hidden=True, id=None)
    assert made == '<b class="a" data-tip="&quot;&lt;" hidden>&lt;&amp;&gt;<i>x</i><u></u></b>'
    assert html("<", Markup("<")) == "&lt;<"
    assert Markup("<wbr>").join(["<", "b"]) == "&lt;<wbr>b"


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255.0 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_are_told_apart(theme: int):
    """WCAG AA: 4.5 for text, 3 for marks and lines."""
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", page([CPU]))
    color = {name: values[theme] for name, *values in found}

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(color[a]), luminance(color[b])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    grounds = ("page", "surface")
    text = ("text", "muted", "accent", "faster", "slower", "bad", "warn", "good")
    assert all(contrast(name, ground) >= 4.5 for name in text for ground in grounds)
    assert all(contrast("text", cell) >= 4.5 for cell in ("fast-cell", "slow-cell"))
    marks = ("variant", "peer", "roof", *(f"s{number}" for number in range(8)))
    assert all(contrast(name, "surface") >= 3.0 for name in marks)


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Runs in a page around the report, which lies in a frame as wide as a telephone, and leaves what it saw in that page.
DRIVER = """
<!DOCTYPE html><pre id="seen"></pre><iframe srcdoc="REPORT" width="390" height="800"></iframe><script>
document.querySelector("iframe").onload = (event) => {
  const view = event.target.contentWindow, page = view.document, seen = {};
  const all = (selector) => [...page.querySelectorAll("#run-0 " + selector)];
  seen.wide = [view.innerWidth, page.documentElement.scrollWidth];
  seen.panels = [...page.querySelectorAll(".run")].map((each) => each.hidden);
  const heads = all("table.rows > thead th");
  const speed = heads.findIndex((head) => head.textContent === "B/s");
  const keys = () => all("table.rows > tbody").map((body) => body.rows[0].cells[speed].dataset.key ?? null);
  for (const order of ["up", "down"]) {
    heads[speed].firstElementChild.click();
    seen[order] = [heads[speed].getAttribute("aria-sort"), keys()];
  }
  heads[0].firstElementChild.click();
  seen.names = all("table.rows > tbody > tr > th").map((head) => head.textContent);
  const shown = () => all(".details").filter((row) => row.getClientRects().length).length;
  seen.details = [shown()];
  all(".open")[3].click();
  seen.details.push(shown());
  const family = all("[data-filter=family]")[0];
  family.value = "linear";
  family.dispatchEvent(new view.Event("input"));
  seen.filtered = [all("table.rows > tbody:not([hidden])").length, all("output")[0].textContent];
  const choose = all("[data-choose]")[0];
  choose.selectedIndex = 1;
  choose.dispatchEvent(new view.Event("change"));
  seen.choices = all("[data-choice]:not([hidden]) h4").map((head) => head.textContent);
  const mark = all(".area .mark")[0].getBoundingClientRect();
  const at = { clientX: mark.x + 9, clientY: mark.y + 9, bubbles: true };
  all(".area")[0].dispatchEvent(new view.PointerEvent("pointerdown", at));
  seen.tip = [page.getElementById("tip").hidden, page.getElementById("tip").textContent];
  all("[data-alone]")[0].click();
  seen.dim = all("[id$=limits] .dim").length;
  page.querySelectorAll("[role=tab]")[1].click();
  seen.switched = [...page.querySelectorAll(".run")].map((each) => each.hidden);
  seen.wide.push(page.documentElement.scrollWidth);
  page.getElementById("theme").click();
  seen.theme = page.documentElement.dataset.theme;
  document.getElementById("seen").textContent = JSON.stringify(seen);
};
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_a_browser_sorts_filters_and_fits_the_page_on_a_telephone(tmp_path: Path):
    driver = tmp_path / "driver.html"
    runs = [replace(GPU, rows=GPU.rows[::-1]), CPU]  # rows without a time first
    driver.write_text(DRIVER.replace("REPORT", escape(page(runs))), encoding="utf-8")
    quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    command = [CHROMIUM, "--headless", "--no-sandbox", *quiet.split(), "--disable-sync", f"--user-data-dir={tmp_path}"]
    command += ["--virtual-time-budget=10000", "--dump-dom", driver.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="seen">(.+?)</pre>', ran.stdout)
    assert match, ran.stdout[-500:] + ran.stderr[-2000:]
    seen = json.loads(unescape(match[1]))

    assert max(seen["wide"]) <= 390 and seen["wide"][0] >= 370
    speeds = [row.nbytes / row.ours.times.median for row in GPU.rows if row.ours and row.ours.times]
    ordered = sorted(float(f"{speed:.6g}") for speed in speeds)
    absent = [None] * (len(GPU.rows) - len(ordered))
    assert absent
    for order, state, expected in (("up", "ascending", ordered), ("down", "descending", ordered[::-1])):
        assert seen[order][0] == state
        assert [None if key is None else float(key) for key in seen[order][1]] == expected + absent
    assert [name.casefold() for name in seen["names"]] == sorted(row.benchmark.casefold() for row in GPU.rows)
    assert seen["details"] == [0, 1]
    linear_rows = sum(row.family == "linear" for row in GPU.rows)
    assert seen["filtered"] == [linear_rows, f"{linear_rows} of {len(GPU.rows)} rows"]
    assert seen["choices"] == ["Against torch"]
    assert seen["tip"][0] is False and "B/s" in seen["tip"][1]
    assert seen["dim"] > 0
    assert (seen["panels"], seen["switched"]) == ([False, True], [True, False])
    assert seen["theme"] in ("dark", "light")
