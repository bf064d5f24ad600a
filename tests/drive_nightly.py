"""A night in a process of its own: `python -m tests.drive_nightly NIGHTLY.yaml STORE`.

Prints one JSON line: what the night ended with, how long it took, and whether this process ever imported torch.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from flows.nightly import nightly
from flows.run import RunOptions
from mot_core.nightly.spec import load_nightly


def main() -> None:
    clock = time.monotonic()
    done = nightly(load_nightly(sys.argv[1]), RunOptions(Path(sys.argv[2]), 2, 0.0), poll_seconds=0.1)
    said = {"directory": str(done.directory), "state": done.state, "seconds": time.monotonic() - clock}
    print(json.dumps({**said, "torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main()
