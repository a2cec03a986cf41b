"""How long a run takes and how much memory, over all its resumes."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import time
from pathlib import Path
from typing import Any

from tasks import records


def peak_memory() -> int | None:
    """Largest resident set so far of this process and its workers, in bytes, added up; None where there is no /proc.

    Pages that they share (weights, libraries) count once for each. Only worker processes are counted, not what tracks the run.
    """
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    try:
        told = [Path(f"/proc/{process}/status").read_text() for process in processes]
    except OSError:
        return None
    return sum(1024 * int(found[1]) for text in told if (found := re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE)))


class Meter:
    """Counts from where the file stops; what a killed run took after its last lap is not known."""

    def __init__(self, path: Path) -> None:
        told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "peak_memory_bytes": None}
        self.path, self.seconds, self.peak_memory_bytes = path, told["seconds"], told["peak_memory_bytes"]
        self._since = time.monotonic()

    def lap(self) -> None:
        """Adds the time since the last lap, looks at the memory, and stores both."""
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        peaks = [peak for peak in (self.peak_memory_bytes, peak_memory()) if peak is not None]
        self.peak_memory_bytes = max(peaks) if peaks else None
        with records.atomic(self.path) as temporary:
            temporary.write_text(json.dumps({"seconds": self.seconds, "peak_memory_bytes": self.peak_memory_bytes}))
