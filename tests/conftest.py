"""Fixtures of the test suite."""

import os
import sys
from pathlib import Path

# Tests choose kernels by the built-in rules, whatever this machine was tuned to.
os.environ["BP_TUNING"] = "off"

# The table of cases is a module beside the tests.
sys.path.insert(0, str(Path(__file__).parent))

from planted import planted  # noqa: F401 (a fixture)
from products import blocks, force, huge, on_hopper, tf32  # noqa: F401 (fixtures)
