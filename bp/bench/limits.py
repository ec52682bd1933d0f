"""The limits of this machine, measured by themselves: copies, peaks, and the shortest launch."""

from collections.abc import Sequence

from bp.bench.results import Limits
from bp.bench.run import Plan, Run


def measure(device: str, precisions: Sequence[str]) -> Limits:
    """What a device ("cpu", "cuda") can do at most, as every run of benchmarks measures it; a few seconds.

    precisions: those whose peak is wanted.
    """
    return Run(Plan([], device, precisions)).results("").limits
