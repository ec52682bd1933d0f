"""The benchmark suite: every kernel and every training step beside its peers and the limits of the machine."""

from bp.bench.benchmark import Benchmark as Benchmark
from bp.bench.benchmark import Measured as Measured
from bp.bench.benchmark import Sizes as Sizes
from bp.bench.benchmark import Work as Work
from bp.bench.benchmark import a_part as a_part
from bp.bench.benchmark import grid as grid
from bp.bench.benchmark import only_on as only_on
from bp.bench.drawing import Draw as Draw
from bp.bench.drawing import Drawn as Drawn
