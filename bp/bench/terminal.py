"""The run as it goes on, line by line: for a terminal and for a pipe."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from bp.bench import units
from bp.bench.results import Group, Limits, Results, Row

if TYPE_CHECKING:
    from rich.console import Console

LEVEL = 0.95  # of the time of a peer: from here on bp counts as level with it
WIDTHS = (21, 5, 8, 19, 13, 5)  # of the columns before the ratios
HEADS = ("", "", "bp", "20 % to 80 %", "rate", "limit")
LEFT = 2  # columns that begin at their left edge; figures end at their right
SPREAD = 3  # the column that a narrow terminal does without
ROOMY = 100  # characters of a line that have room for it


class Printer:
    """Prints rows as they come. console: rich's, which leaves out the colours where nobody sees them."""

    def __init__(self, console: "Console") -> None:
        self.console = console
        narrow = console.is_terminal and console.width < ROOMY
        self._places = [place for place in range(len(WIDTHS)) if not narrow or place != SPREAD]
        self._ratio_head = "others / bp" if narrow else "time of others / time of bp"
        self._family = self._benchmark = ""

    def limits(self, limits: Limits) -> None:
        """What the percentages are of."""
        said = []
        if limits.copy:
            (small, fast), (large, slow) = limits.copy[0], limits.copy[-1]
            said.append(f"copies {units.bandwidth(fast)} of {units.nbytes(small)} to ")
            said[-1] += f"{units.bandwidth(slow)} of {units.nbytes(large)}"
        said += [f"{precision} {units.compute(rate)}" for precision, rate in limits.peak.items()]
        if limits.launch_seconds is not None:
            said.append(f"shortest launch {units.seconds(limits.launch_seconds)}")
        self._print(f"limits: {', '.join(said) or 'not measured'}", "dim")

    def row(self, row: Row) -> None:
        """One line, and one more for whatever is wrong or failed; a heading where another benchmark begins."""
        if row.family != self._family:
            self._print(f"\n{self._columns((row.family, *HEADS[1:]))}  {self._ratio_head}", "bold")
        if (row.family, row.benchmark) != (self._family, self._benchmark):
            sizes = " x ".join(name for name, size in row.sizes.items() if not isinstance(size, str))
            self._print(f" {row.benchmark}", end="")
            self._print(f", {sizes}" if sizes else "", "dim")
            self._family, self._benchmark = row.family, row.benchmark
        times = None if row.ours is None else row.ours.times
        cells = [f"  {row.shape}", row.precision]
        if times is None:
            state = "" if row.ours is None else row.ours.status
            self._print(self._columns([*cells, state, "", "", ""]).rstrip())
        else:
            spread = f"{units.seconds(times.low)} to {units.seconds(times.high)}"
            percent = "" if row.percent is None else units.percent(row.percent)
            line = self._columns([*cells, units.seconds(times.median), spread, rate(row), percent])
            self._print(line, end="\n" if row.refused else "")
            if not row.refused:
                self._ratios(row, times.median, len(line))
        if row.refused:
            self._print(f"    refused: {row.refused}", "red")
        for entry in row.entries:
            if entry.status in ("wrong", "failed"):
                self._print(f"    {entry.contestant} {entry.status}: {entry.reason}", "red")
        reasons = {entry.reason for entry in row.entries if entry.status == "left out"}
        if row.ours is not None and row.ours.status == "left out":
            self._print(f"    {'; '.join(sorted(reasons))}", "yellow")

    def _ratios(self, row: Row, ours: float, begin: int) -> None:
        """The other contestants beside bp, the fastest first. begin: characters that the line has already."""
        end = begin
        timed = [(entry.times.median / ours, entry) for entry in row.entries if entry.times and entry is not row.ours]
        for ratio, entry in sorted(timed, key=lambda pair: pair[0]):
            style = "dim" if entry.ours else "green" if ratio >= 1.0 else "yellow" if ratio >= LEVEL else "red"
            text = f"  {entry.contestant.removeprefix('bp ')} {units.ratio(ratio)}"
            if self.console.is_terminal and begin < end and end + len(text) > self.console.width:
                self._print(f"\n{' ' * begin}", end="")
                end = begin
            self._print(text, style, end="")
            end += len(text)
        self._print("")

    def end(self, results: Results) -> None:
        """What came out, family by family, and who was missing."""
        self._print("")
        for family, rows in _by_family(results.rows):
            ratios = [row.ratio for row in rows if row.ratio is not None]
            percents = [row.percent for row in rows if row.percent is not None]
            said = f"{family}: {units.counted(len(rows), 'row')}"
            if ratios:
                mean = math.exp(statistics.fmean(map(math.log, ratios)))
                said += f", the best peer takes {units.ratio(mean)} the time of bp"
                if len(ratios) > 1:
                    said += f" ({units.ratio(min(ratios))} to {units.ratio(max(ratios))})"
            if percents:
                said += f", {units.percent(statistics.median(percents))} of the limit at the median"
            self._print(said)
        for line in _group_lines(results.groups):
            self._print(line)
        if not results.rows:
            self._print(f"no rows: what was asked for has no cases for device '{results.about.device}'", "yellow")
        for name, reason in results.missing.items():
            self._print(f"no {name}: {reason}", "yellow")
        bad = sum(entry.status in ("wrong", "failed") for row in results.rows for entry in row.entries)
        if bad:
            self._print(f"wrong or failed: {units.counted(bad, 'contestant')}, see above", "red")
        about = results.about
        machine = [f"{value} cores" if key == "cores" else value for key, value in about.machine.items()]
        revision = f"{about.versions.get('bp', '')} ({about.revision})".lstrip()
        self._print(f"{', '.join(machine)}; bp {revision}; {results.seconds:.0f} s", "dim")

    def _columns(self, cells: Sequence[str]) -> str:
        """Words to the left, figures to the right; longer texts push the rest on."""
        padded = []
        for place in self._places:
            text, width = cells[place], WIDTHS[place]
            padded.append(text.ljust(width) if place < LEFT else text.rjust(width))
        return " ".join(padded)

    def _print(self, text: str, style: str = "", end: str = "\n") -> None:
        self.console.print(text, style=style or None, end=end, highlight=False, markup=False, soft_wrap=True)


def rate(row: Row) -> str:
    """Operations or bytes a second of bp, by what bounds the work."""
    if row.ours is None or row.ours.times is None:
        return ""
    if row.flops and (row.bound == "compute" or not row.nbytes):
        return units.compute(row.flops / row.ours.times.median)
    return units.bandwidth(row.nbytes / row.ours.times.median) if row.nbytes else ""


def _group_lines(groups: Iterable[Group]) -> Iterator[str]:
    """A line for each group of rows: bp beside the fastest peer and each other, its rungs beside that peer."""
    together: dict[tuple[str, str, str, str], list[Group]] = {}
    for group in groups:
        together.setdefault((group.group, group.family, group.benchmark, group.precision), []).append(group)
    for (name, family, benchmark, precision), members in together.items():
        said: list[str] = []
        for one in members:
            if one.contestant == "bp" and not one.beside:
                least = f", {units.ratio(one.least)} at {one.worst}, {units.ratio(one.median)} at the median"
                said.insert(0, f"fastest peer {units.ratio(one.mean)}{least if one.rows > 1 else ''}")
                if one.percent is not None:
                    said.insert(1, f"{units.percent(one.percent)} of the limit")
            elif one.contestant == "bp" and one.beside.partition(" ")[0] != "bp":
                said.append(f"{one.beside} {units.ratio(one.mean)}")
            elif one.contestant == "bp" and "=" not in one.beside:
                said.append(f"{one.beside.removeprefix('bp ')} {units.ratio(one.mean)}")
            elif "=" in one.contestant:
                said.append(f"{one.contestant.removeprefix('bp ')} reaches {units.ratio(one.mean)}")
        rows = units.counted(max(one.rows for one in members), "row")
        yield f"{name}: {benchmark or f'all of {family}'} {precision}, {rows}: {'; '.join(said)}"


def _by_family(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row.family, []).append(row)
    return list(families.items())
