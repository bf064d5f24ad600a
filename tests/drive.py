"""Run a spec in a process of its own, as `mot run` does: `python -m tests.drive SPEC.yaml STORE`.

Prints one JSON line: the run's directory, and whether this process ever imported torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flows.run import RunOptions, run
from mot_core.spec_files import load_spec


def main() -> None:
    run_dir = run(load_spec(sys.argv[1]), RunOptions(Path(sys.argv[2]), workers=2, checkpoint_seconds=0.0))
    print(json.dumps({"run_dir": str(run_dir), "torch": "torch" in sys.modules}))


if __name__ == "__main__":
    main()
