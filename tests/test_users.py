"""Which runs are in progress: another process's while it lives, never one's own or a dead one's, and no step's."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from mot_core.artifacts import Store
from mot_core.removal import remove_unwanted
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


def test_every_lock_is_one_that_nfs_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS version 4 refuses a shared lock on a file that is open for writing alone, and an exclusive one without writing."""
    flock, asked = fcntl.flock, set()

    def flock_of_nfs(file: IO[str], how: int) -> None:
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_WRONLY if how & fcntl.LOCK_SH else os.O_RDONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        asked.add(how)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    store = Store(tmp_path / "store").open()
    with store.in_use("mine-001", is_run=True):
        assert store.other_runs() == []
    assert remove_unwanted(store).removals == []
    alone = fcntl.LOCK_EX | fcntl.LOCK_NB
    assert asked == {fcntl.LOCK_SH, fcntl.LOCK_SH | fcntl.LOCK_NB, fcntl.LOCK_EX, alone}
