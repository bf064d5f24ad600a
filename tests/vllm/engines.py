"""What both kinds of vLLM tests need: sources, requests, a fake interpreter, and a look at an engine's processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mot_core.completers.base import Completion, Request, Source
from mot_core.completers.vllm_completer import VllmCompleter
from mot_core.runner import ModelCache
from mot_core.spec import Engine, Sampling

FAKE = Path(__file__).parent / "fake"


def fake_python(directory: Path) -> Path:
    """An "interpreter" that has the fake vLLM: it runs the worker script with this one."""
    program = directory / "fake-python"
    runner = f"import runpy, sys; sys.path.insert(0, {str(FAKE)!r}); sys.argv = sys.argv[1:]; "
    runner += "runpy.run_path(sys.argv[0], run_name='__main__')"
    program.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -c "{runner}" "$@"\n')
    program.chmod(0o755)
    return program


def source(model: Path | str, cache: ModelCache, scratch: Path, **changes: Any) -> Source:
    """A source on the CPU; `engine` and `sampling` as fields of their specs, the rest as `Source` has them."""
    engine: Mapping[str, Any] = changes.pop("engine", {})
    sampling = Sampling(**{"temperature": 0.7, "max_completion_tokens": 96, **changes.pop("sampling", {})})
    settings = Engine(**engine).model_dump(mode="json")
    return Source(str(model), None, sampling, settings=settings, load=cache.get, scratch=scratch, **changes)


def requests(count: int, samples: int = 1) -> list[Request]:
    """Requests with questions that the laboratory's models know."""
    return [
        Request.of({"test": 1}, f"p{number}", f"{number}+{2 * number + 11}-{number}", sample)
        for number in range(count)
        for sample in range(samples)
    ]


def ask(completer: VllmCompleter, wanted: list[Request]) -> dict[str, Completion]:
    """The rows, by key; each request has exactly one."""
    rows: list[Completion] = []
    completer.complete(wanted, rows.extend, lambda tokens: None)
    assert sorted(row.key for row in rows) == sorted(request.key for request in wanted)
    return {row.key: row for row in rows}


def notes(path: Path, name: str) -> list[Any]:
    """What the fake engines noted under a name."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [event[name] for event in map(json.loads, lines) if name in event]


def workers_of(pid: int) -> list[int]:
    """The processes of engines below a process."""
    from tests.processes import descendants

    return [child for child, command in descendants(pid).items() if "vllm_worker.py" in command]
