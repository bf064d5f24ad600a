"""Run studies at their smoke size in one process, one after the other: `python -m tests.drive_studies STORE NAME…`.

Prints a JSON line a study: its run's directory, the seconds it took, and whether this process ever imported torch.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from flows.run import RunOptions
from flows.studies import study_named
from flows.studies.base import setup_of, study_sizes
from flows.studies.run import run_study


def main() -> None:
    store, *names = sys.argv[1:]
    for name in names:
        started = time.monotonic()
        study = study_named(name)
        size = "smoke" if study_sizes(study.name) else "study-smoke"
        run_dir = run_study(study, setup_of(study, size, (), store), RunOptions(Path(store), workers=2))
        said = {
            "study": name,
            "run_dir": str(run_dir),
            "seconds": time.monotonic() - started,
            "torch": "torch" in sys.modules,
        }
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
