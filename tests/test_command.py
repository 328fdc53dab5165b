"""What the doors do before any of our work begins."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

ROUNDS = """
import resource
from t2i.command import keep_freed_memory
{before}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(1 << 26)
start = faults()
for _ in range(8):
    bytearray(1 << 26)
print(faults() - start)
"""


def new_pages(before: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", ROUNDS.format(before=before)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=clean).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a setting of glibc")
def test_freed_memory_is_kept() -> None:
    by_default, kept = new_pages(""), new_pages("keep_freed_memory()")
    assert kept < 100 and by_default > 2 * kept + 100


@pytest.mark.skipif(platform.libc_ver()[0] == "glibc", reason="glibc has the setting: see above")
def test_elsewhere_it_does_nothing() -> None:
    new_pages("keep_freed_memory()")
