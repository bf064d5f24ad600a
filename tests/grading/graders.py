"""Graders that misbehave, for the pool's workers to import: `tests.grading.graders:NAME`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mot_core.grading.verdicts import UngradableGold


def same(family: str, gold: str, answer: str) -> bool:
    return gold == answer


def slow(family: str, gold: str, answer: str) -> bool:
    """Takes as many seconds as the answer says."""
    time.sleep(float(answer))
    return True


def meet(family: str, gold: str, answer: str) -> bool:
    """Waits for another: true once two answers are being graded at the same time that name this directory."""
    (Path(answer) / gold).touch()
    while sum(1 for _ in Path(answer).iterdir()) < 2:
        time.sleep(0.01)
    return True


def parent(family: str, gold: str, answer: str) -> bool:
    """Starts a process, leaves its id as a name in the directory that the answer names, and never ends."""
    (Path(answer) / str(subprocess.Popen(["sleep", "1000"]).pid)).touch()
    time.sleep(1000)
    return True


def moody(family: str, gold: str, answer: str) -> bool:
    """Does what the answer says."""
    if answer == "hang":
        while True:
            pass
    if answer == "hog":
        return len(bytearray(8 << 30)) > 0
    if answer == "grow":
        hoard: list[bytes] = []
        while True:
            hoard.append(bytes(1 << 20))
    if answer == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if answer == "exit":
        sys.exit(3)
    if answer == "leave":
        os._exit(4)
    if answer == "raise":
        raise ZeroDivisionError("no such luck")
    if answer == "print":
        print("noise on standard output", flush=True)
    return gold == answer or answer == "print"


def picky(family: str, gold: str, answer: str) -> bool:
    if gold == "bad":
        raise UngradableGold("the reference answer is bad")
    return gold != "odd"


def where(family: str, gold: str, answer: str) -> bool:
    """Is this process a worker with no torch and no terminal?"""
    return "torch" not in sys.modules and sys.stdin is not None and not os.isatty(0)
