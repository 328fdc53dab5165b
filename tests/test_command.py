"""What the doors do before any of our work begins."""

from __future__ import annotations

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


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_freed_memory_is_kept() -> None:
    def new_pages(before: str) -> int:
        done = subprocess.run([sys.executable, "-c", ROUNDS.format(before=before)], capture_output=True, text=True,
                              check=True, timeout=60)  # fmt: skip
        return int(done.stdout)

    if new_pages("") < 100:
        pytest.skip("this C library keeps its memory by itself")
    assert new_pages("keep_freed_memory()") < 100
