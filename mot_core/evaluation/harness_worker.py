"""lm-evaluation-harness's own process. Run by path, with an interpreter that has lm-eval.

    python -I -u harness_worker.py MODE REPLY PARENT      (REPLY: the number of an inherited descriptor; PARENT: a process id)
    standard input: a request; REPLY: one object, {"ok": …} or {"error": text, "at": …}; files go into the request's "out"

`check` looks up names and reads no data; `run` loads the tasks with their data, then the model, and evaluates.

Invariant: imports lm-eval and what it stands on, never `mot_core`; ends when the process that started it ends.
"""

from __future__ import annotations

import ctypes
import difflib
import json
import math
import os
import platform
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PACKAGES = ("lm_eval", "torch", "transformers", "datasets", "tokenizers")
TEXT_WIDTH = 600
Json = dict[str, Any]


class Refusal(Exception):
    """What is wrong with a request, and where it was seen: import, tasks, unsafe, data, model."""

    def __init__(self, at: str, text: str) -> None:
        super().__init__(text)
        self.at = at


def main() -> None:
    mode, reply, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    os.set_inheritable(reply, False)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os._exit(1)
    request = json.load(sys.stdin)
    try:
        answer: Json = {"ok": (check if mode == "check" else run)(request)}
    except Refusal as refusal:
        traceback.print_exc()
        answer = {"error": str(refusal), "at": refusal.at}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": one_line(error), "at": "run"}
    with os.fdopen(reply, "w") as pipe:
        json.dump(answer, pipe)
    sys.exit("error" in answer)


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:TEXT_WIDTH]


# --- names -----------------------------------------------------------------------------------------------------------


def check(request: Json) -> Json:
    """The version, the requested names that are not known, the tasks that run code which a model wrote, and those that lack
    the metric asked for.

    A metric is looked up where a task's YAML lists its metrics; tasks written in Python say theirs only when they run.
    """
    index = manager_for(request["tasks"], request["include_path"]).task_index
    unknown = [
        [name, difflib.get_close_matches(name, index, n=3, cutoff=0.6)]
        for name in request["tasks"]
        if name not in index
    ]
    lacking, unsafe = [], []
    metric, _, chosen_filter = (request["metric"] or "").partition(",")
    for name in request["tasks"] if not unknown else ():
        for leaf, config in leaves(index, name):
            if config.get("unsafe_code", False) is not False:
                unsafe.append(leaf)
            if not metric:
                continue
            listed = [str(entry["metric"]) for entry in config.get("metric_list") or ()]
            filters = [entry["name"] for entry in config.get("filter_list") or ()] or ["none"]
            if listed and (metric not in listed or (chosen_filter and chosen_filter not in filters)):
                lacking.append([leaf, [f"{one},{of}" for one in listed for of in filters]])
    return {"version": metadata.version("lm_eval"), "unknown": unknown, "unsafe": unsafe, "lacking": lacking}


def manager_for(names: list[str], include_path: str | None) -> Any:
    """The index of tasks. The built-in ones take seconds to read, and are left out where a folder has all that is asked."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise Refusal("import", one_line(error)) from error
    if include_path is not None:
        own = TaskManager(include_path=include_path, include_defaults=False)
        if all(is_whole(own.task_index, name) for name in names):
            return own
    return TaskManager(include_path=include_path)


def is_whole(index: Mapping[str, Any], name: Any) -> bool:
    """Whether an index has a name, and whatever a group of that name is made of."""
    if not isinstance(name, str) or name not in index:
        return False
    return all(is_whole(index, child) for child in children_of(index[name]) if child != name)


def children_of(entry: Any) -> list[Any]:
    """What a tag or a group is made of, names or tables of YAML; a task has none."""
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    if entry.kind.name != "GROUP":
        return []
    listed = entry.cfg["task"]
    return listed if isinstance(listed, list) else [listed]


def leaves(index: Mapping[str, Any], name: str) -> Iterator[tuple[str, Json]]:
    """`(task, its YAML)` of every task behind a name: its own, a group's, or those of a tag."""
    entry = index[name]
    if entry.kind.name not in ("TAG", "GROUP"):
        yield name, entry.cfg or {}
    for child in children_of(entry):
        known = child if isinstance(child, str) else child.get("task")
        if isinstance(known, str) and known in index and known != name:
            yield from leaves(index, known)


# --- a run -----------------------------------------------------------------------------------------------------------


def run(request: Json) -> Json:
    """Evaluate, write `results.json`, `samples.jsonl` and `versions.json`, and return how much was asked."""
    try:
        version = metadata.version("lm_eval")
        if version != request["lm_eval"]:
            raise Refusal("version", f"{version}, but the step was planned with {request['lm_eval']}")
        import torch
        from lm_eval import simple_evaluate
    except ImportError as error:  # or the package's absence, which is one
        raise Refusal("import", one_line(error)) from error
    torch.set_num_threads(request["threads"])
    manager = manager_for(request["tasks"], request["include_path"])
    parts = {name: load(manager, name) for name in request["tasks"]}
    seed = request["seed"]
    found = simple_evaluate(
        model=load_model(request), tasks=[part for own in parts.values() for part in own["items"]], task_manager=manager,
        num_fewshot=request["num_fewshot"], batch_size=request["batch_size"], limit=request["limit"],
        system_instruction=request["system_instruction"], apply_chat_template=request["apply_chat_template"],
        fewshot_as_multiturn=request["apply_chat_template"], gen_kwargs=request["gen_kwargs"] or None, log_samples=True,
        random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
    )  # fmt: skip
    out = Path(request["out"])
    samples = {task: list(documents(rows)) for task, rows in found["samples"].items()}
    with (out / "samples.jsonl").open("w", encoding="utf-8") as file:
        for task, rows in samples.items():
            for row in rows:
                file.write(json.dumps(plain({"task": task, **row}), ensure_ascii=False, allow_nan=False) + "\n")
    names = list(dict.fromkeys([*parts, *found["results"]]))
    results = {
        name: {
            "leaves": parts[name]["leaves"] if name in parts else leaves_of(found, name),
            "metrics": metrics_of(found["results"].get(name, {})),
            "higher_is_better": found["higher_is_better"].get(name, {}),
            "num_fewshot": found["n-shot"].get(name),
            "version": found["versions"].get(name),
        }
        for name in names
    }
    for row in results.values():
        row["num_documents"] = sum(len(samples[leaf]) for leaf in row["leaves"])
    write(out / "results.json", {"requested": list(parts), "tasks": results})
    versions = {name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    write(out / "versions.json", versions)
    return {"num_documents": sum(map(len, samples.values()))}


def load(manager: Any, name: str) -> Json:
    """A name's tasks with their data, as `simple_evaluate` takes them, and the names of the tasks at the leaves."""
    if name not in manager.task_index:
        raise Refusal("tasks", f"{name!r} is not known to lm-eval {metadata.version('lm_eval')}")
    try:
        loaded = manager.load([name])
    except Exception as error:  # whatever a data set's reader or a task's own code raises
        raise Refusal("data", f"task {name!r}: {one_line(error)}") from error
    for task_name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise Refusal("unsafe", task_name)
    groups = loaded.get("groups", {})
    items = [groups[name]] if name in groups else list(loaded["tasks"].values())
    return {"items": items, "leaves": list(loaded["tasks"])}


def load_model(request: Json) -> Any:
    """The student: safetensors only, never remote code; of what its generation config says, no limit of tokens, which
    would go before a task's `max_gen_toks`."""
    from lm_eval.models.huggingface import HFLM

    try:
        model = HFLM(
            pretrained=request["model"], revision=request["revision"] or "main", device=request["device"],
            batch_size=request["batch_size"], trust_remote_code=False, use_safetensors=True, **request["model_args"],
        )  # fmt: skip
    except Exception as error:
        raise Refusal("model", one_line(error)) from error
    model.model.generation_config.max_new_tokens = None
    return model


def documents(rows: list[Json]) -> Iterator[Json]:
    """One row a document from lm-eval's, which are one a document and filter."""
    merged: dict[Any, Json] = {}
    for row in rows:
        own = merged.setdefault(
            row["doc_id"],
            {"doc_id": row["doc_id"], **{name: row[name] for name in ("doc_hash", "prompt_hash", "target_hash")},
             "metrics": {}, "responses": row["resps"]},
        )  # fmt: skip
        own["metrics"] |= {f"{name},{row['filter']}": row[name] for name in row["metrics"]}
    yield from merged.values()


def metrics_of(row: Json) -> Json:
    """`{"metric,filter": {"value": …, "stderr": …}}` in lm-eval's order; None where it gives no number."""
    found = {}
    for key, value in row.items():
        name, separator, of = key.partition(",")
        if separator and not name.endswith("_stderr"):
            found[key] = {"value": number(value), "stderr": number(row.get(f"{name}_stderr,{of}"))}
    return found


def leaves_of(found: Json, name: str) -> list[str]:
    children = found["group_subtasks"].get(name)
    return [name] if children is None else [leaf for child in children for leaf in leaves_of(found, child)]


def number(value: Any) -> float | None:
    """A finite number; None for what is none ('N/A', NaN)."""
    try:
        converted = float(value)
    except (TypeError, ValueError):
        return None
    return converted if math.isfinite(converted) else None


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers of NumPy and torch as Python's, what is not finite as None, other things as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def write(path: Path, document: Json) -> None:
    path.write_text(json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
