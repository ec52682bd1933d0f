"""What NVIDIA's data sheets say of one GPU of each architecture: for figures where no GPU was measured."""

from dataclasses import dataclass

from bp.bench.results import Limits
from bp.errors import ConfigurationError


@dataclass(frozen=True)
class Nominal:
    """name: of the GPU. multiprocessors: how many it has. memory: bytes a second; peak: FLOP/s by precision, without
    sparsity, of 16-bit factors with sums in float32."""

    name: str
    multiprocessors: int
    memory: float
    peak: dict[str, float]

    @property
    def limits(self) -> Limits:
        """As measured limits have it."""
        return Limits([(1.0, self.memory)], self.peak)


def _peaks(fp32: float, tf32: float | None, half: float, bf16: bool = True) -> dict[str, float]:
    """From TFLOP/s."""
    found = {"fp32": fp32, "fp16": half} | ({} if tf32 is None else {"tf32": tf32}) | ({"bf16": half} if bf16 else {})
    return {precision: rate * 1e12 for precision, rate in found.items()}


NOMINAL = {
    75: Nominal("T4", 40, 320e9, _peaks(8.1, None, 65, bf16=False)),
    80: Nominal("A100 SXM 80 GB", 108, 2039e9, _peaks(19.5, 156, 312)),
    86: Nominal("A40", 84, 696e9, _peaks(37.4, 74.8, 149.7)),
    89: Nominal("L40S", 142, 864e9, _peaks(91.6, 183, 362)),
    90: Nominal("H200 SXM", 132, 4800e9, _peaks(67, 494, 989)),
    100: Nominal("B200", 148, 8000e9, _peaks(75, 1125, 2250)),
    120: Nominal("RTX 5090", 170, 1792e9, _peaks(104.8, 104.8, 209.5)),
}


def nominal(capability: int) -> Nominal:
    """Of a compute capability; ConfigurationError for one that is not in the table."""
    if capability not in NOMINAL:
        known = ", ".join(f"sm_{number}" for number in NOMINAL)
        raise ConfigurationError(f"no GPU of sm_{capability} is known here, only those of {known}")
    return NOMINAL[capability]
