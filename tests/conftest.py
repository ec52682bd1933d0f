"""Fixtures of the test suite."""

import sys
from pathlib import Path

# The table of cases is a module beside the tests.
sys.path.insert(0, str(Path(__file__).parent))
