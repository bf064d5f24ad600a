"""Graders that misbehave, for the pool's workers to import: `tests.grading.graders:NAME`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from mot_core.grading.verdicts import UngradableGold


def same(family: str, gold: str, answer: str) -> bool:
    return gold == answer


def slow(family: str, gold: str, answer: str) -> bool:
    """Takes as many seconds as the answer says."""
    time.sleep(float(answer))
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
    if answer == "child":
        subprocess.Popen(["sleep", "1000"])
        time.sleep(1000)
    return gold == answer or answer == "print"


def picky(family: str, gold: str, answer: str) -> bool:
    if gold == "bad":
        raise UngradableGold("the reference answer is bad")
    return gold != "odd"


def where(family: str, gold: str, answer: str) -> bool:
    """Is this process a worker with no torch and no terminal?"""
    return "torch" not in sys.modules and sys.stdin is not None and not os.isatty(0)
