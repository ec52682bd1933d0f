"""Native kernels give the same bits on any number of threads: run in processes of their own, which read it at start."""

import os
import subprocess
import sys

import pytest

from bp.cpu import native


def expect_same_on_any_threads(code):
    """`code` prints what must not depend on the number of threads, such as a hash of results."""
    if native.kernels is None:
        pytest.skip("the native extension is not built")
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for threads in ("1", "2", "3")
    }
    assert len(printed) == 1 and printed != {""}
