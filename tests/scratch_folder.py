"""Print the folder for the temporary files of a test run: in memory where there is room, else the usual one.

The tests write and remove a hundred thousand small files, and flush many of them to the disk.
"""

import os
import tempfile
from pathlib import Path

MEMORY_FOLDER = Path("/dev/shm")
ROOM = 6 << 30  # bytes that a run may take; 3 GiB were seen
LEFT = 6 << 30  # bytes of memory for the tests themselves


def scratch_folder(folder: Path = MEMORY_FOLDER, *, meminfo: Path = Path("/proc/meminfo")) -> str:
    """The folder in memory if it has room, lets programs run from it, and leaves memory for the tests."""
    try:
        state = os.statvfs(folder)
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    except (OSError, ValueError):
        return tempfile.gettempdir()
    available = int(lines.get("MemAvailable", "0 kB").split()[0]) << 10
    fits = state.f_bavail * state.f_frsize >= ROOM and available >= ROOM + LEFT
    runs = not state.f_flag & os.ST_NOEXEC and os.access(folder, os.W_OK)
    return str(folder) if fits and runs else tempfile.gettempdir()


if __name__ == "__main__":
    print(scratch_folder())
