"""EleutherAI's lm-evaluation-harness run on a student, in a process and, if wanted, an environment of its own.

Its tasks, prompts, filters and metrics are taken as they are, by the version that enters identity. Ours are only the
weights that it is given, and what is kept of its results: every metric, and every document's answer.

Invariant: nothing here imports lm-eval or torch, so that names can be checked in the flow's process; the harness's process
ends with the one that started it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mot_core.errors import ModelError, MotError, ProblemError, SpecError, StoreError, WorkerError
from mot_core.files import read_jsonl, sha256_of
from mot_core.identity import fingerprint
from mot_core.model_files import check_model_files
from mot_core.processes import clean_environment

if TYPE_CHECKING:
    from mot_core.runner import StepContext
    from mot_core.spec import Harness

WORKER = Path(__file__).with_name("harness_worker.py")
RESULTS, SAMPLES, VERSIONS = "results.json", "samples.jsonl", "versions.json"
LOG_LINES = 12
_UNSAFE = "task {!r} runs code that the model wrote, which is never done here; leave it out"
# What reaches the hub of data sets; of secrets, its token alone.
_NETWORK = ("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE",
            "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")  # fmt: skip
Rows = list[dict[str, Any]]


def harness_python() -> str:
    """The interpreter that has lm-eval: `MOT_LM_EVAL_PYTHON`, or this one."""
    named = os.environ.get("MOT_LM_EVAL_PYTHON") or sys.executable
    found = shutil.which(named)
    if found is None:
        raise WorkerError(
            f"MOT_LM_EVAL_PYTHON is {named!r}: no such program; expected a Python interpreter that has lm-eval"
        )
    return found


# --- before anything runs --------------------------------------------------------------------------------------------


def check_harness(entry: Harness, where: str) -> tuple[str, str | None]:
    """lm-eval's version, and the content hash of the entry's folder of tasks, if it has one.

    Raises:
        SpecError: no such folder, a task that lm-eval does not know or that runs code which a model wrote, or a metric that
            a task does not have.
        WorkerError: the interpreter has no lm-eval.
    """
    content = folder_identity(entry.include_path, f"{where}.include_path") if entry.include_path is not None else None
    folder = str(folder_of(entry.include_path)) if entry.include_path is not None else None
    found = _looked_up(harness_python(), entry.tasks, folder, content, entry.metric)
    for name, near in found["unknown"]:
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        place = f" and {entry.include_path}" if folder else ""
        raise SpecError(
            f"{where}.tasks: {name!r} is no task, group or tag of lm-eval {found['version']}{place}; {hint}"
            f"`{harness_python()} -m lm_eval ls tasks` lists them, and include_path names a folder of your own"
        )
    for task in found["unsafe"]:
        raise SpecError(f"{where}.tasks: {_UNSAFE.format(task)}")
    for task, metrics in found["lacking"]:
        raise SpecError(
            f"{where}.metric: task {task!r} has no {entry.metric!r}; it has {', '.join(metrics)}; name one of them, leave "
            "it out for each task's first, or give tasks with other metrics an entry of their own"
        )
    return found["version"], content


@functools.cache
def _looked_up(python: str, tasks: tuple[str, ...], folder: str | None, content: str | None, metric: str | None) -> Any:
    """What the worker says of names. It takes seconds, so each question is asked once a process; `content` is its key."""
    request = {"tasks": list(tasks), "include_path": folder, "metric": metric}
    with tempfile.TemporaryFile() as log:
        try:
            return ask(python, "check", request, cwd=Path.cwd(), threads=1, output=log.fileno())
        except WorkerError as error:
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
            raise WorkerError("\n".join([str(error), *lines])) from None


def folder_of(include_path: str) -> Path:
    return Path(include_path).expanduser().absolute()


def folder_identity(include_path: str, where: str) -> str:
    """The content hash of a folder of tasks: every file in it, YAML, data and code, by its path in the folder.

    Raises:
        SpecError: no such folder, or no YAML in it.
    """
    folder = folder_of(include_path)
    if not any(folder.rglob("*.yaml")):
        raise SpecError(f"{where}: {include_path!r} holds no *.yaml; expected a folder of lm-eval tasks")
    inside = [(path, path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return fingerprint(
        [[name.as_posix(), sha256_of(path)] for path, name in inside if not {"__pycache__", ".git"} & {*name.parts}]
    )


# --- the step --------------------------------------------------------------------------------------------------------


def run_harness(context: StepContext) -> dict[str, Any]:
    """Runner of `harness`: results, a row a document, versions; the manifest counts documents and the metrics of the names
    that were asked for.

    Raises:
        SpecError, ProblemError, ModelError, WorkerError: what the harness refused, or how its process ended.
    """
    context.models.close()  # an engine of the evaluations before it would hold the device
    spec, settings, folder = context.spec, context.settings, context.step.locators.get("include_path")
    python, content = harness_python(), spec["include_path"]
    where = context.step.label
    if folder is not None and folder_identity(folder, where) != content:
        raise SpecError(f"{where}: the files in {folder} have changed since the run was planned; run it again")
    model = Path(context.model_dir("student"))
    if model.is_dir():
        check_model_files(model, where)
    asked = ("tasks", "num_fewshot", "limit", "apply_chat_template", "system_instruction", "gen_kwargs", "model_args",
             "batch_size", "seed", "lm_eval")  # fmt: skip
    request = {
        **{name: spec[name] for name in asked},
        "model": str(model.absolute()) if model.is_dir() else str(model),
        "revision": context.step.locators.get("student_revision"),
        "include_path": folder, "device": settings.device, "threads": settings.threads,
        "out": str(context.work_dir.absolute()),
    }  # fmt: skip
    # Data files in a task's YAML are found from the folder itself, wherever it lies. Elsewhere nothing lies in the way: a
    # directory named as a data set would be taken for it.
    with tempfile.TemporaryDirectory() as empty:
        try:
            told = ask(python, "run", request, cwd=Path(folder or empty), threads=settings.threads)
        except MotError as error:
            raise type(error)(f"{where}: {error}") from None
    results = read_results(context.work_dir)
    figures = {
        f"{name}/{key}": figure["value"]
        for name in results["requested"]
        for key, figure in results["tasks"][name]["metrics"].items()
    }
    return {"num_documents": told["num_documents"], **figures}


def ask(
    python: str, mode: str, request: Mapping[str, Any], *, cwd: Path, threads: int, output: int | None = None
) -> Any:
    """The worker's answer to a request. What it prints goes to `output`, or where this process prints.

    Raises:
        SpecError, ProblemError, ModelError, WorkerError: what it refused, or how it ended.
    """
    reading, writing = os.pipe()
    forced = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "TQDM_MININTERVAL": "60"}
    network = {name: os.environ[name] for name in _NETWORK if os.environ.get(name)}
    try:
        process = subprocess.Popen(
            [python, "-I", "-u", str(WORKER), mode, str(writing), str(os.getpid())], stdin=subprocess.PIPE,
            stdout=output, stderr=output, pass_fds=(writing,), cwd=cwd,
            env=clean_environment({"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}, {**network, **forced}),
        )  # fmt: skip
    except OSError:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    assert process.stdin is not None
    with os.fdopen(reading, "rb") as pipe:
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:  # a worker that died at once says so below
                process.stdin.write(json.dumps(request).encode())
            reply = pipe.read()
            process.wait()
        finally:
            process.kill()
            process.wait()
    if not reply:
        code = process.returncode
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        raise WorkerError(
            f"lm-evaluation-harness {how}; the step's log has what it printed; the same command runs it again"
        )
    answer = json.loads(reply)
    if "error" in answer:
        raise _refusal(answer["at"], answer["error"], python)
    return answer["ok"]


def _refusal(at: str, text: str, python: str) -> MotError:
    if at == "import":
        return WorkerError(
            f"{python} cannot import lm-eval: {text}; install it there (pip install 'mot[harness]'), or set "
            "MOT_LM_EVAL_PYTHON to the interpreter of an environment that has it"
        )
    if at == "tasks":
        return SpecError(text)
    if at == "version":
        return WorkerError(f"{python} has lm-eval {text}; the step's name says so: plan and run with the same one")
    if at == "unsafe":
        return SpecError(_UNSAFE.format(text))
    if at == "data":
        return ProblemError(
            f"{text}; its data could not be read: with HF_HUB_OFFLINE={os.environ.get('HF_HUB_OFFLINE') or '1'}; set "
            "HF_HUB_OFFLINE=0 where the hub can be reached (HF_TOKEN for gated sets), or name local files in a task of your own"
        )
    if at == "model":
        return ModelError(f"the harness cannot load the student: {text}")
    return WorkerError(f"lm-evaluation-harness failed: {text}; the step's log has its traceback")


# --- what tables read ------------------------------------------------------------------------------------------------


def read_results(directory: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((directory / RESULTS).read_text())
    return document


def harness_scores(directory: Path, name: str, metric: str | None) -> list[tuple[dict[str, Any], Rows]]:
    """`(row of scores, rows of problem_scores)` of every task, group or tag that was asked for whose metric is a share: a
    mean over documents of values in [0, 1], where more is better. The second are empty unless each value is 0 or 1.

    `metric` is lm-eval's name, with its filter after a comma if there are several; absent: each task's first.

    Raises:
        StoreError: a task without that metric.
    """
    results = read_results(directory)
    by_task: dict[str, Rows] = {}
    for row in read_jsonl(directory / SAMPLES):
        by_task.setdefault(row["task"], []).append(row)
    found = []
    for task in results["requested"]:
        leaves = results["tasks"][task]["leaves"]
        first = results["tasks"][leaves[0]]
        key = metric_key(first["metrics"], metric, f"{directory}: task {task!r}")
        figure = results["tasks"][task]["metrics"].get(key)
        values = {
            f"{leaf}/{row['doc_id']}": row["metrics"].get(key) for leaf in leaves for row in by_task.get(leaf, ())
        }
        shares = [float(v) for v in values.values() if isinstance(v, (bool, int, float)) and 0.0 <= v <= 1.0]
        less_is_better = first["higher_is_better"].get(key.partition(",")[0]) is False
        if not shares or len(shares) != len(values) or less_is_better:
            continue
        # A tag has no figure of its own: it is a list of tasks, and its documents are pooled.
        mean = figure["value"] if figure is not None else sum(shares) / len(shares)
        error = figure["stderr"] if figure is not None else None
        if mean is None or not 0.0 <= mean <= 1.0:
            continue
        row = {
            "benchmark": f"{name}/{task}",
            "k": 1,
            "num_problems": len(values),
            "avg_at_k": mean,
            "se_problems": error,
        }
        found.append((row, _document_rows(values) if set(shares) <= {0.0, 1.0} else []))
    return found


def _document_rows(values: Mapping[str, Any]) -> Rows:
    return [
        {"problem_id": document, "num_correct": int(value), "num_samples": 1, "outcomes": (bool(value),)}
        for document, value in values.items()
    ]


def metric_key(metrics: Sequence[str] | Mapping[str, Any], metric: str | None, where: str) -> str:
    """`metric,filter` of a task: the first, the first of that name, or that very one.

    Raises:
        StoreError: it has none such.
    """
    for key in metrics:
        if metric is None or metric in (key, key.partition(",")[0]):
            return key
    raise StoreError(
        f"{where}: no metric {metric!r} among {', '.join(metrics) or 'none'}; name one of them in the spec"
    )
