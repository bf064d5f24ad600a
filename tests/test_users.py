"""Which runs are in progress: another process's while it lives, never one's own or a dead one's, and no step's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mot_core.artifacts import Store
from tests.processes import ROOT

OTHER = """
import sys
from mot_core.artifacts import Store
store = Store(sys.argv[1])
with store.in_use("lab-1a2b.x-001", is_run=True), store.in_use("finetune ann"):
    print("there", flush=True)
    sys.stdin.readline()
"""


def test_a_run_is_in_progress_while_its_process_lives(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.other_runs() == []
    store.open()
    with store.in_use("mine-001", is_run=True):
        assert store.other_runs() == []
        with subprocess.Popen(
            [sys.executable, "-c", OTHER, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        ) as other:
            assert other.stdout is not None and other.stdout.readline() == b"there\n"
            assert store.other_runs() == ["lab-1a2b.x-001"]
            other.kill()
            other.wait()
            assert store.other_runs() == []
