"""A branch over several devices: torchrun starts a process for each, and they train it together.

    worker ──► python -m mot_core.sft.launch start N JOB ──► torchrun ──► N × python -m mot_core.sft.launch rank JOB

The last command also runs under a launcher of your own: `accelerate launch -m mot_core.sft.launch rank JOB`.
Invariant: no process outlives the worker, and what one of them raised is what the worker raises.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mot_core import errors
from mot_core.errors import TrainingError, WorkerError
from mot_core.processes import die_with_parent

if TYPE_CHECKING:
    from mot_core.sft.branch import BranchJob

log = logging.getLogger("mot.sft")

_MARK = "mot-progress "
# Ranks load in turn and the first one writes alone, so the others wait for longer than NCCL's ten minutes.
_PATIENCE = timedelta(hours=2)


def launch(job: BranchJob, report: Callable[..., None]) -> dict[str, Any]:
    """Train a branch in `training.devices` processes; its counts.

    Raises:
        MotError: what a process raised; `WorkerError` if one died.
    """
    work_dir, count = Path(job.work_dir), job.training.devices
    for name in (".error.json", ".counts.json"):
        (work_dir / name).unlink(missing_ok=True)
    (work_dir / ".job.json").write_text(json.dumps(asdict(job)))
    process = subprocess.Popen(
        [sys.executable, "-m", "mot_core.sft.launch", "start", str(count), str(work_dir / ".job.json")],
        stdout=subprocess.PIPE, env={**os.environ, **_environment(job, count)}, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        with process.stdout as lines:
            for line in lines:
                if line.startswith(_MARK):
                    facts = json.loads(line.removeprefix(_MARK))
                    report(facts.pop("done"), facts.pop("total"), facts.pop("unit"), **facts)
                else:
                    print(line, end="", flush=True)
        code = process.wait()
    finally:
        process.kill()  # and with it, its children; nothing where it has ended
        process.wait()
    if (work_dir / ".error.json").exists():
        told = json.loads((work_dir / ".error.json").read_text())
        raise getattr(errors, told["type"])(told["message"])
    finished = work_dir / ".counts.json"
    if code != 0 and not finished.exists():
        raise WorkerError(
            f"a process of this branch died (torchrun ended with {code}); its output is in the step's log"
        )
    if code != 0:
        log.warning("torchrun ended with %d, after all processes had finished: the branch is whole", code)
    counts: dict[str, Any] = json.loads(finished.read_text())
    return counts


def _environment(job: BranchJob, count: int) -> dict[str, str]:
    """Threads and devices of the processes: the job's own.

    Raises:
        TrainingError: fewer devices than asked for.
    """
    environment = {"OMP_NUM_THREADS": str(max(1, job.threads // count))}
    if not job.devices:
        return environment
    if len(job.devices) < count:
        raise TrainingError(
            f"training.devices is {count}, but the job has {len(job.devices)} ({', '.join(job.devices)}); lower it, or "
            "give the job as many"
        )
    return {**environment, "CUDA_VISIBLE_DEVICES": ",".join(job.devices[:count])}


def start(count: int, job_file: str) -> None:
    """torchrun, in a process that dies with the worker."""
    die_with_parent()
    from torch.distributed.run import main as torchrun

    torchrun(
        ["--nnodes=1", f"--nproc-per-node={count}", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
         "--local-addr=127.0.0.1", "-m", "mot_core.sft.launch", "rank", job_file]
    )  # fmt: skip


def run_rank(job_file: str) -> None:
    """One process of a branch, under any launcher that sets RANK, LOCAL_RANK, WORLD_SIZE and MASTER_ADDR."""
    die_with_parent()
    import torch
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    from mot_core.sft.branch import BranchJob, fine_tune
    from mot_core.sft.ranks import Ranks

    job = BranchJob(**json.loads(Path(job_file).read_text()))
    torch.set_num_threads(max(1, job.threads // job.training.devices))
    accelerator = Accelerator(cpu=not job.devices, kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])
    ranks = Ranks(accelerator.process_index, accelerator.num_processes, accelerator.device)
    scratch = Path(job.work_dir)
    try:
        counts = fine_tune(job, ranks, _report)
    except errors.MotError as error:
        told = json.dumps({"type": type(error).__name__, "message": str(error)})
        # All processes mostly fail alike; one report is enough, and whole or absent.
        (scratch / f".error-{ranks.index}").write_text(told)
        (scratch / f".error-{ranks.index}").replace(scratch / ".error.json")
        raise
    accelerator.wait_for_everyone()
    if ranks.first:  # written whole, since it says that the branch is: what dies while processes part costs nothing
        (scratch / ".counts").write_text(json.dumps(counts))
        (scratch / ".counts").replace(scratch / ".counts.json")
    accelerator.end_training()


def _report(done: float, total: float, unit: str, **facts: Any) -> None:
    print(_MARK + json.dumps({"done": done, "total": total, "unit": unit, **facts}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "start":
        start(int(sys.argv[2]), sys.argv[3])
    else:
        run_rank(sys.argv[2])
