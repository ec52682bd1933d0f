"""The limits of this machine, measured by themselves: copies, peaks, and the shortest launch."""

from collections.abc import Sequence

from bp.bench.results import Limits
from bp.bench.run import Plan, Run


def measure(device: str, precisions: Sequence[str] = (), *, quick: bool = False) -> Limits:
    """What a device ("cpu", "cuda") can do at most, as every run of benchmarks measures it; a few seconds.

    precisions: those whose peak is wanted, default all that the device has.
    """
    return Run(Plan([], device, precisions, quick=quick)).results("").limits
