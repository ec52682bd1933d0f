"""bp doctor: say what this machine has, and what to install."""

from collections.abc import Sequence

from bp.cli.arguments import Parser
from bp.doctor import examine


def main(argv: Sequence[str]) -> None:
    """Run `bp doctor` with these arguments."""
    Parser("doctor", "Say what this machine has, what is missing, and the command that installs it.").parse_args(argv)
    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{finding.state:7}  {finding.what:{width}}  {finding.found}")
        if finding.remedy:
            print(f"{'':7}  {'':{width}}  -> {finding.remedy}")
