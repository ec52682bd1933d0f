"""The sections of the README that are generated: text between `<!-- name:begin ... -->` and `<!-- name:end -->`."""

import os
import platform
import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def replace_section(name: str, text: str) -> None:
    """Put `text` between the markers of that name; raises ValueError where the README lacks them."""
    content = README.read_text()
    pattern = re.compile(rf"(<!-- {name}:begin [^>]*-->\n).*?(\n<!-- {name}:end -->)", re.DOTALL)
    new, count = pattern.subn(lambda match: match[1] + text + match[2], content)
    if count != 1:
        raise ValueError(f"README.md: expected one section '{name}', found {count}")
    README.write_text(new)


def cpu_name() -> str:
    """The processor and how many cores this process may use, for figures."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        match = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        model = match[1] if match else model
    return f"{model}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
