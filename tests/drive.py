"""Run a spec in a process of its own, as `mot run` does: `python -m tests.drive SPEC.yaml STORE [RAY-ADDRESS]`,
there with two shards.

Prints one JSON line: the run's directory, whether this process ever imported torch, the nodes that steps ran on, by label.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.run import RunOptions, run
from mot_core.spec_files import load_spec
from mot_core.steps import Step


def main() -> None:
    nodes: dict[str, list[str]] = {}

    def watch(step: Step, event: dict[str, Any]) -> None:
        if event.get("event") == "placed":
            nodes.setdefault(step.label, []).append(event["node"])
            print(json.dumps({"placed": step.label, "node": event["node"]}), flush=True)

    place = RunOptions(ray=sys.argv[3], shards=2) if len(sys.argv) > 3 else RunOptions(workers=2)
    run_dir = run(load_spec(sys.argv[1]), replace(place, store=Path(sys.argv[2]), checkpoint_seconds=0.0), watch)
    print(json.dumps({"run_dir": str(run_dir), "torch": "torch" in sys.modules, "nodes": nodes}))


if __name__ == "__main__":
    main()
