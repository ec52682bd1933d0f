"""A roofline as a terminal or a pipe shows it: kernels by layer and pass, kernels in all, and what to improve first."""

from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bp.bench import units
from bp.bench.roofline import OUTSIDE, Line, Roofline

UNNOTICED = 1.0  # percent of a step below which a line is dim
GAP = 2  # characters between columns
READABLE = 16  # characters of a name

WORDS = ("layer", "kernel", "operation")  # columns whose texts may be shortened
OPTIONAL = ("reached", "FLOPs", "bytes")  # columns that a narrow terminal does without, this one first

Row = list[str]


def show(found: Roofline, console: Console) -> None:
    """Print it: tables as wide as a terminal, or, where the console is none, aligned text of any width."""
    lines, kernels = _table(found.lines, found, summed=False), _table(found.kernels, found, summed=True)
    for text in _opening(found):
        _say(console, text)
    dim = [line.share is not None and line.share < UNNOTICED for line in found.lines]
    _print(console, lines, 3, dim)
    _print(console, kernels, 1, dim=[False] * len(found.kernels))
    for text in _closing(found):
        _say(console, text)


def _say(console: Console, text: str) -> None:
    """A sentence, of which only a terminal breaks lines."""
    console.print(text, soft_wrap=not console.is_terminal, highlight=False, markup=False)


def _opening(found: Roofline) -> Iterator[str]:
    yield f"{found.recipe} on {found.device}: a training step of {found.samples:,} samples in {found.precision}"
    if found.whole_seconds is None:
        yield f"times are not measured: {found.device} computes what a GPU would, at a speed that says nothing"
        return
    rate = f"{found.samples / found.whole_seconds:,.0f}"
    yield (
        f"{units.seconds(found.whole_seconds)} a step {found.how} (median of {found.times}), {rate} samples/s; loading "
        f"its samples takes {units.seconds(found.fetch_seconds)}"
    )
    limits, known = found.limits, []
    if limits.copy:
        known.append(f"copies {units.bandwidth(limits.copy[-1][1])}")
    known += [f"{precision} products {units.compute(peak)}" for precision, peak in limits.peak.items()]
    if limits.launch_seconds is not None:
        known.append(f"the smallest piece of work {units.seconds(limits.launch_seconds)}")
    yield "limits: " + (", ".join(known) or "not measured")


def _closing(found: Roofline) -> Iterator[str]:
    whole = found.seconds
    if whole is not None:
        yield "improve first" if found.improve else "improve first: nothing, every kernel is at its limit"
        for number, line in enumerate(found.improve, 1):
            worth = line.worth or 0.0
            yield (
                f"{number}. {line.kernel}: at its limit the step would take {units.seconds(whole - worth)} instead of "
                f"{units.seconds(whole)}: {units.percent(100 * worth / whole)} less"
            )
    for remark in found.remarks:
        yield f"note: {remark}"


def _table(lines: Sequence[Line], found: Roofline, *, summed: bool) -> list[Row]:
    """The heads and a row for each line. summed: over layers and passes, which are left out."""
    timed = found.seconds is not None
    kernel = "operation" if found.device == "cpu" else "kernel"
    where = [kernel, "runs"] if summed else ["layer", "pass", kernel]
    work = ["FLOPs", "bytes"]
    heads = [*where, "time", "share", *work, "reached", "of limit", "bound"] if timed else [*where, *work, "FLOPs/byte"]
    return [heads + (["worth"] if timed and summed else []), *(_row(line, found.seconds, summed) for line in lines)]


def _row(line: Line, whole: float | None, summed: bool) -> Row:
    outside = line.kernel in OUTSIDE.values()
    where = [line.kernel, str(line.runs)] if summed else [_owner(line, outside), line.phase, line.kernel]
    work = [_text(line.flops, units.short), _text(line.nbytes, units.nbytes)]
    if whole is None:
        intensity = line.flops / line.nbytes if line.flops is not None and line.nbytes else None
        return [*where, *work, _text(intensity, units.significant)]
    figures = [_text(line.seconds, units.seconds), _text(line.share, units.percent), *work, _reached(line)]
    worth = [_text(None if line.worth is None else 100 * line.worth / whole, units.percent)] if summed else []
    return [*where, *figures, _text(line.percent, units.percent), line.bound, *worth]


def _owner(line: Line, outside: bool) -> str:
    """Who has the line's work done: a layer, a loss, an optimizer, or else the Trainer."""
    runs = f" x{line.runs}" if line.runs > 1 else ""
    return "" if outside else (line.layer or "Trainer") + runs


def _text(value: float | None, shown: Callable[[float], str]) -> str:
    return "" if value is None else shown(value)


def _reached(line: Line) -> str:
    if not line.seconds:
        return ""
    if line.bound == "compute":
        return _text(line.flops, lambda flops: units.compute(flops / (line.seconds or 1.0)))
    return _text(line.nbytes, lambda nbytes: units.bandwidth(nbytes / (line.seconds or 1.0)))


def _print(console: Console, table: list[Row], names: int, dim: Sequence[bool]) -> None:
    """names: how many columns on the left are words."""
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            cells = [f"{text:{'<' if i < names else '>'}{widths[i]}}" for i, text in enumerate(row)]
            _say(console, (" " * GAP).join(cells).rstrip())
        console.print()
        return
    heads, *rows = _fitted(table, console.width)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, GAP - 1, 0, 0))
    for index, head in enumerate(heads):
        made.add_column(head, justify="left" if index < names else "right", no_wrap=True)
    for row, faint in zip(rows, dim, strict=True):
        made.add_row(*map(Text, row), style="dim" if faint else None)
    console.print(made)
    console.print()


def _fitted(table: list[Row], width: int) -> list[Row]:
    """The table as it fits: without columns that it can do without, then with names shortened."""
    dropped = 0
    while True:
        kept = [index for index, head in enumerate(table[0]) if head not in OPTIONAL[:dropped]]
        fitting = [[row[index] for index in kept] for row in table]
        words = [index for index, head in enumerate(fitting[0]) if head in WORDS]
        widths = [max(map(len, column)) for column in zip(*fitting, strict=True)]
        room = width - GAP * (len(kept) - 1) - sum(w for index, w in enumerate(widths) if index not in words)
        if room >= sum(min(widths[index], READABLE) for index in words) or dropped == len(OPTIONAL):
            break
        dropped += 1
    while sum(widths[index] for index in words) > max(room, len(words)):
        widths[max(words, key=lambda index: widths[index])] -= 1
    return [[shortened(text, widths[i]) if i in words else text for i, text in enumerate(row)] for row in fitting]


def shortened(text: str, width: int) -> str:
    """At most `width` characters, the middle left out."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return text[: width - 1 - tail] + "…" + text[len(text) - tail :]
