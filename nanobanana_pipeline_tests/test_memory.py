"""What a long run keeps: see docs/performance.md for how much."""

import subprocess
import sys

_PROGRAM = """
import sys
import nanobanana_pipeline.cli.work
from nanobanana_pipeline.memory import share_allocator
if "pyarrow" in sys.modules:
    sys.exit("Arrow is loaded before the command could say where it allocates")
share_allocator()
import pyarrow
print(pyarrow.default_memory_pool().backend_name)
"""


def test_a_run_has_arrow_allocate_where_what_is_freed_can_be_given_back() -> None:
    """Arrow's own allocator kept what entering a catalogue had taken: 60 MB more for the whole of a run."""
    ended = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False, timeout=300)

    assert ended.stdout == "system\n", ended.stderr
