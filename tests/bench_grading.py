"""What the grading pool costs beside bare Math-Verify: `python -m tests.bench_grading`. Not a test.

    pool    answers/s of `GradingPool` with as many workers as cores, on ordinary completions with a boxed answer
    bare    answers/s of one process that calls Math-Verify's `parse` and `verify` on the same, its limits off
    ratio   pool over (cores × bare); the goal is 0.8

Invariant: no answer is text-identical to its gold, none is a plain integer, and no two pairs are equal, so that neither the
fast paths nor the pool's memory of a call flatter it. Both sides are started and warmed before the clock, and runs alternate.
The figure with a usual share of short cuts (a third of the answers written exactly like the gold) stands beside it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from statistics import median
from typing import Any

from mot_core.grading.pool import GradingPool
from mot_core.grading.verdicts import GradeItem, Verdict
from tests.bench import machine_facts
from tests.processes import cpu_seconds, descendants

NUM_ANSWERS = 600
RUNS = 3
GOAL = 0.8
Pair = tuple[str, str, bool]
_SENTENCES = (
    "We first rewrite the expression in a simpler form and look at each part in turn.",
    "Since both sides are positive, squaring keeps the order, and we may compare the squares.",
    "Substituting the value back into the equation shows that the condition holds, so nothing is lost.",
    "Let $k$ be the number of such pairs; then $2k + 1$ counts every case exactly once.",
    "By symmetry the remaining case is the same, so it is enough to treat the first one here.",
)


def pairs(num_answers: int, seed: int = 1) -> list[Pair]:
    """`(gold, answer, whether it is right)`: decimals, fractions, roots, points, terms; a quarter of them wrong."""
    rng = random.Random(seed)
    found: dict[tuple[str, str], bool] = {}
    kinds = (_fraction, _decimal, _root, _point, _term, _thousands)
    while len(found) < num_answers:
        right = rng.random() < 0.75
        gold, answer = kinds[len(found) % len(kinds)](rng, 0 if right else rng.randint(1, 3))
        if gold != answer:
            found[gold, answer] = right
    return [(gold, answer, right) for (gold, answer), right in found.items()]


def _fraction(rng: random.Random, off: int) -> tuple[str, str]:
    top, bottom, factor = rng.randint(1, 60), rng.randint(61, 97), rng.randint(2, 9)
    return f"\\frac{{{top}}}{{{bottom}}}", f"\\dfrac{{{top * factor + off}}}{{{bottom * factor}}}"


def _decimal(rng: random.Random, off: int) -> tuple[str, str]:
    quarters = rng.randint(1, 4000) * 2 + 1
    return f"\\frac{{{quarters}}}{{4}}", f"{(quarters + off) / 4}"


def _root(rng: random.Random, off: int) -> tuple[str, str]:
    outer, inner = rng.randint(2, 30), rng.choice((2, 3, 5, 6, 7, 10, 11, 13))
    return f"{outer}\\sqrt{{{inner}}}", f"\\sqrt{{{outer * outer * inner + off}}}"


def _point(rng: random.Random, off: int) -> tuple[str, str]:
    x, y, z = (rng.randint(-40, 40) for _ in range(3))
    return f"\\left({x},{y},\\frac{{{2 * z + 1}}}{{2}}\\right)", f"({x}, {y + off}, {z + 0.5})"


def _term(rng: random.Random, off: int) -> tuple[str, str]:
    a, b = rng.randint(2, 30), rng.randint(2, 30)
    return f"x^2+{a + b}x+{a * b}", f"(x+{a})(x+{b + off})"


def _thousands(rng: random.Random, off: int) -> tuple[str, str]:
    number = rng.randint(10**4, 10**7)
    return f"{number}\\pi", f"\\pi \\cdot {number + off:,}".replace(",", "{,}")


def completion(answer: str, rng: random.Random) -> str:
    """About 1,000 characters, with the box at the end."""
    sentences: list[str] = []
    while sum(map(len, sentences)) < 900:
        sentences.append(rng.choice(_SENTENCES))
    return f"<think>{' '.join(sentences)}</think>\nHence the answer is $\\boxed{{{answer}}}$."


_BARE = """
import json, logging, sys, time
logging.disable(logging.CRITICAL)
from math_verify import parse, verify
def grade(gold, text):
    parsed = parse(gold, parsing_timeout=None)
    return verify(parsed, parse(text, parsing_timeout=None), timeout_seconds=None)
for line in sys.stdin:
    work = json.loads(line)
    started, used = time.perf_counter(), time.process_time()
    right = [grade(gold, text) for gold, text in work]
    print(json.dumps([time.perf_counter() - started, time.process_time() - used, right]), flush=True)
"""


class Bare:
    """One process of Math-Verify alone."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def grade(self, work: list[tuple[str, str]]) -> tuple[float, float, list[bool]]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([(f"\\boxed{{{gold}}}", text) for gold, text in work]) + "\n")
        self.process.stdin.flush()
        seconds, cpu_seconds, right = json.loads(self.process.stdout.readline())
        return seconds, cpu_seconds, right

    def close(self) -> None:
        self.process.communicate()


def bench(num_answers: int = NUM_ANSWERS, runs: int = RUNS) -> dict[str, Any]:
    """The figures, medians over alternating runs; each run has pairs of its own, so that no cache knows them."""
    cores = len(os.sched_getaffinity(0))
    rng = random.Random(7)
    every = pairs(2 * num_answers * (runs + 1))
    rates: dict[str, list[float]] = {name: [] for name in ("pool", "bare", "pool_with_short_cuts")}
    cpu: dict[str, list[float]] = {"pool": [], "bare": []}
    right = {"pool": 0, "bare": 0}
    bare = Bare()
    with GradingPool(cores) as pool:
        for run in range(runs + 1):
            at = 2 * run * num_answers
            part, other = every[at : at + num_answers], every[at + num_answers : at + 2 * num_answers]
            work = [(gold, completion(answer, rng)) for gold, answer, _ in part]
            wanted = [want for *_, want in part]
            bare_seconds, bare_cpu, said = bare.grade(work)
            seconds, pool_cpu, verdicts = pool_run(pool, work)
            short = [
                (gold, completion(gold if n % 3 == 0 else answer, rng)) for n, (gold, answer, _) in enumerate(other)
            ]
            short_seconds, _, _ = pool_run(pool, short)
            if run == 0:  # warms both sides, and is not counted
                continue
            rates["bare"].append(num_answers / bare_seconds)
            rates["pool"].append(num_answers / seconds)
            rates["pool_with_short_cuts"].append(num_answers / short_seconds)
            cpu["bare"].append(bare_cpu / num_answers)
            cpu["pool"].append(pool_cpu / num_answers)
            right["bare"] += sum(got == want for got, want in zip(said, wanted, strict=True))
            right["pool"] += sum(
                verdict == (Verdict.CORRECT if want else Verdict.INCORRECT)
                for verdict, want in zip(verdicts, wanted, strict=True)
            )
    bare.close()
    total = num_answers * runs
    return {
        **{f"{name}_answers_per_second": round(median(rate), 1) for name, rate in rates.items()},
        **{f"{name}_cpu_ms_an_answer": round(1000 * median(seconds), 2) for name, seconds in cpu.items()},
        "ratio": round(median(p / (cores * b) for p, b in zip(rates["pool"], rates["bare"], strict=True)), 3),
        "ratio_by_run": [round(p / (cores * b), 3) for p, b in zip(rates["pool"], rates["bare"], strict=True)],
        "goal": GOAL,
        "pool_right_verdicts": f"{right['pool']} of {total}",
        "bare_right_verdicts": f"{right['bare']} of {total}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def pool_run(pool: GradingPool, work: list[tuple[str, str]]) -> tuple[float, float, list[Verdict]]:
    """`(wall seconds, CPU seconds of client, warden and workers, verdicts)`."""
    before = pool_cpu_seconds(pool)
    started = time.perf_counter()
    graded = pool.grade([GradeItem("math", "", gold, text) for gold, text in work])
    seconds = time.perf_counter() - started
    return seconds, pool_cpu_seconds(pool) - before, [one.verdict for one in graded]


def pool_cpu_seconds(pool: GradingPool) -> float:
    """CPU time of this process, the warden and its children, the reaped ones too."""
    pids = () if pool._process is None else (pool._process.pid, *descendants(pool._process.pid))
    return time.process_time() + sum(map(cpu_seconds, pids))


def main() -> None:
    for name, value in {**bench(), **machine_facts()}.items():
        print(f"{name:38} {value}")


if __name__ == "__main__":
    main()
