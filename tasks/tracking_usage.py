"""What a step took of the machine, under the names by which MLflow draws its page of system metrics.

Invariant: only numbers of the step's own processes and GPUs; none of it is a result, so none of it decides whether a run
is logged anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tasks.tracking_records import Sample

_MEGABYTE = 1e6  # as MLflow counts


def system_samples(rows: Iterable[Mapping[str, Any]]) -> Iterator[Sample]:
    """Processors and memory of the step's processes, utilisation and memory of its GPUs: a step a look."""
    for number, row in enumerate(rows):
        time = float(row["time"])
        yield "system/cpu_utilization_percentage", float(row["cpu_percent"]), number, time
        yield "system/system_memory_usage_megabytes", row["memory_bytes"] / _MEGABYTE, number, time
        for index, gpu in enumerate(row.get("gpus", ())):
            name = f"system/gpu_{index}"
            if "utilization_percent" in gpu:
                yield f"{name}_utilization_percentage", float(gpu["utilization_percent"]), number, time
            yield f"{name}_memory_usage_megabytes", gpu["memory_bytes"] / _MEGABYTE, number, time
            yield f"{name}_memory_usage_percentage", float(gpu["memory_percent"]), number, time


def speed_samples(rows: Iterable[Mapping[str, Any]], first_step: int, last_step: int) -> Iterator[Sample]:
    """Tokens a second since the branch's start, by optimizer step on the path, up to before its last step: there the
    branch's own count stands."""
    seen = first_step
    for row in rows:
        step = first_step + int(row.get("done", 0))
        if row.get("unit") == "steps" and "tokens_per_second" in row and seen < step < last_step:
            seen = step
            yield "tokens_per_second", float(row["tokens_per_second"]), step, float(row["time"])
