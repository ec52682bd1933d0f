"""bp bench report: one page of HTML from the results of earlier runs."""

from collections.abc import Sequence
from pathlib import Path

from bp.bench.reading import read_json
from bp.bench.report import write_html
from bp.cli.arguments import Parser


def main(argv: Sequence[str]) -> None:
    """Run `bp bench report` with these arguments."""
    parser = Parser("bench report", "Write one page of HTML from files that `bp bench --json` wrote.")
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS.json")
    parser.add_argument("--html", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args(argv)
    write_html([read_json(path) for path in arguments.results], arguments.html)
    print(arguments.html)
