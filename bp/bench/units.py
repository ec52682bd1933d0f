"""Numbers as people read them: three significant digits and a unit of fitting size."""

import math
import re

DASH = "\N{EN DASH}"  # between two ends, and where a figure is missing
TIMES = "\N{MULTIPLICATION SIGN}"
PREFIXES = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0, "m": 1e-3, "µ": 1e-6, "n": 1e-9}


def significant(value: float) -> str:
    """Three significant digits without an exponent: 0.0123, 1.20, 123, 1230."""
    if value == 0.0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(_rounded(value)))))}f}"


def trimmed(text: str) -> str:
    """Without zeros at the end of a fraction, as ticks of an axis are written: 1.50 GB is 1.5 GB."""
    return re.sub(r"\.(\d*?)0*(?!\d)", lambda match: f".{match[1]}" if match[1] else "", text)


def counted(number: int, noun: str) -> str:
    """The noun with its number: 1 row, 2 rows."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _rounded(value: float) -> float:
    return float(f"{value:.2e}")


def _prefix(value: float, prefixes: str) -> str:
    """The largest of these prefixes that leaves at least 1, else the smallest; 999.9 k is rounded to 1 M first."""
    if value == 0.0:
        return ""
    allowed = [prefix for prefix in PREFIXES if prefix in prefixes or not prefix]
    return next((prefix for prefix in allowed if abs(_rounded(value)) >= PREFIXES[prefix]), allowed[-1])


def _prefixed(value: float, prefixes: str, space: str = " ") -> str:
    prefix = _prefix(value, prefixes)
    return f"{significant(value / PREFIXES[prefix])}{space}{prefix}"


def seconds(value: float) -> str:
    return _prefixed(value, "mµn") + "s"


def span(low: float, high: float) -> str:
    """Two times with one unit: 5.27 – 5.36 µs."""
    prefix = _prefix(high, "mµn")
    return f"{significant(low / PREFIXES[prefix])} {DASH} {significant(high / PREFIXES[prefix])} {prefix}s"


def nbytes(value: float) -> str:
    return _prefixed(value, "TGMk") + "B"


def bandwidth(value: float) -> str:
    return _prefixed(value, "TGMk") + "B/s"


def compute(value: float) -> str:
    return _prefixed(value, "PTGMk") + "FLOP/s"


def flops(value: float) -> str:
    return _prefixed(value, "PTGMk") + "FLOP"


def short(value: float) -> str:
    """Without a unit: 100, 1.50G."""
    return _prefixed(value, "PTGMk", space="")


def size(value: float) -> str:
    """A size of an array or a batch: whole up to four digits, then 16.4k, 1.05M."""
    return f"{value:g}" if abs(value) < 10_000 else short(value)


def percent(value: float) -> str:
    return f"{value:.0f}%" if value >= 9.95 or value == 0.0 else f"{value:.1f}%"


def ratio(value: float) -> str:
    """1.32×; two digits below a tenth, where decimals would hide it."""
    if value >= 99.5:
        return f"{value:.0f}{TIMES}"
    if value >= 9.995:
        return f"{value:.1f}{TIMES}"
    return f"{value:.2f}{TIMES}" if value >= 0.0995 else f"{value:.2g}{TIMES}"


def fact(name: str, value: float) -> str:
    """A figure beside the time; its name says its unit where it has one."""
    unit = name.rpartition("_")[2]
    if unit == "bytes":
        return nbytes(value)
    if unit in ("seconds", "s"):
        return seconds(value)
    return f"{value:g}" if value == int(value) and abs(value) < 10_000 else short(value)


def clock(name: str, value: float) -> str:
    """A clock of the machine in MHz; watts and degrees Celsius where its name says so: gpu before 1980 MHz."""
    words = name.split()
    unit = "W" if "watts" in words else "°C" if "celsius" in words else "MHz"
    return f"{' '.join(word for word in words if word not in ('watts', 'celsius'))} {value:.4g} {unit}"
