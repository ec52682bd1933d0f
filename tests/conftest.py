"""Fixtures of the test suite."""

import sys
from pathlib import Path

# The table of cases is a module beside the tests.
sys.path.insert(0, str(Path(__file__).parent))

from planted import planted  # noqa: F401 (a fixture)
from products import force, huge, tf32  # noqa: F401 (fixtures)
