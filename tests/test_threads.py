"""Thread pools: libraries that bp loads wait briefly, and nothing else in the process or its children changes."""

import os
import subprocess
import sys
from pathlib import Path

REPORT = """
import os
before = dict(os.environ)
seen = {}
import bp.threads

with bp.threads.short_waits():
    seen = {name: os.environ.get(name) for name in bp.threads.SHORT_WAITS}
import bp.cpu.native
assert dict(os.environ) == before, "the environment has changed"
print(seen)
"""


def report(**environment):
    """What libraries see while bp loads them, with these settings of the user's."""
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    clean.pop("OPENBLAS_THREAD_TIMEOUT", None)
    clean["PYTHONPATH"] = str(Path(__file__).parent.parent)
    run = subprocess.run([sys.executable, "-c", REPORT], env=clean | environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_libraries_see_short_waits_and_the_environment_is_left_as_it_was():
    assert report() == "{'OPENBLAS_THREAD_TIMEOUT': '16', 'GOMP_SPINCOUNT': '1000'}"


def test_settings_of_the_user_stand():
    assert report(OPENBLAS_THREAD_TIMEOUT="20", OMP_WAIT_POLICY="active") == (
        "{'OPENBLAS_THREAD_TIMEOUT': '20', 'GOMP_SPINCOUNT': None}"
    )
