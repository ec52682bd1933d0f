"""The report of benchmark runs: one self-contained page of HTML.

The plots are SVG made here and not by a plotting library, so that the page holds some kilobytes a row and nothing else,
and its colours follow the reader's theme.
"""

from collections.abc import Sequence
from pathlib import Path

from bp.bench.report.page import page
from bp.bench.results import Results
from bp.errors import ConfigurationError

__all__ = ["write_html"]


def write_html(results: Sequence[Results], path: Path) -> None:
    """Write the page of these runs, such as one of a CPU and one of a GPU; the same runs make the same bytes.

    Raises ConfigurationError where there is no run to show.
    """
    if not results:
        raise ConfigurationError("a report expects at least one run, got none")
    path.write_text(page(results), encoding="utf-8", newline="\n")
