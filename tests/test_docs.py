"""The examples of the documentation, run as they are printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXTENDING = (ROOT / "docs" / "extending.md").read_text()


def blocks(language: str) -> list[str]:
    # All fences in one pass, so that a closing one is never taken for an opening one.
    found = re.findall(r"^```(\w*)\n(.*?)^```$", EXTENDING, flags=re.M | re.S)
    return [text for own, text in found if own == language]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_api")
def test_the_whole_experiment_of_extending_runs_as_printed(tmp_path: Path, drive_environment: dict[str, str]) -> None:
    for language, mark in (("python", r"# (\w+\.py)\n"), ("yaml", r"# (\w+\.yaml)\n")):
        for block in blocks(language):
            named = re.match(mark, block)
            if named:
                (tmp_path / named.group(1)).write_text(block)
    assert {path.name for path in tmp_path.iterdir()} == {
        "my_problems.py", "my_grader.py", "my_completer.py", "my_rule.py", "my_method.py", "my.yaml",
    }  # fmt: skip
    (script,) = [block for block in blocks("") if "mot run my.yaml" in block]
    environment = {**drive_environment, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (summary,) = (tmp_path / "my-store" / "runs").glob("*/summary.json")
    methods = json.loads(summary.read_text())["budgets"]["matched_path"]
    assert {"base", "std/calculator", "std/running-total", "mot", "in-turn"} <= set(methods)
