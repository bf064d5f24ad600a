"""A step's use of the machine under MLflow's own names: those that its page of system metrics looks for."""

from __future__ import annotations

from tasks.tracking_usage import speed_samples, system_samples

GPU = {"utilization_percent": 80, "memory_bytes": 4_000_000, "memory_percent": 50.0}
ROWS = [
    {"time": 10.0, "cpu_percent": 25.0, "memory_bytes": 3_000_000},
    {
        "time": 11.0,
        "cpu_percent": 50.0,
        "memory_bytes": 5_000_000,
        "gpus": [GPU, {"memory_bytes": 1, "memory_percent": 0.0}],
    },
]


def test_processes_and_gpus_have_mlflows_names() -> None:
    assert list(system_samples(ROWS)) == [
        ("system/cpu_utilization_percentage", 25.0, 0, 10.0),
        ("system/system_memory_usage_megabytes", 3.0, 0, 10.0),
        ("system/cpu_utilization_percentage", 50.0, 1, 11.0),
        ("system/system_memory_usage_megabytes", 5.0, 1, 11.0),
        ("system/gpu_0_utilization_percentage", 80.0, 1, 11.0),
        ("system/gpu_0_memory_usage_megabytes", 4.0, 1, 11.0),
        ("system/gpu_0_memory_usage_percentage", 50.0, 1, 11.0),
        ("system/gpu_1_memory_usage_megabytes", 1e-6, 1, 11.0),
        ("system/gpu_1_memory_usage_percentage", 0.0, 1, 11.0),
    ]


def test_mlflows_own_monitors_give_these_names() -> None:
    """Its processor monitor, asked here; its GPU monitor needs a GPU, so its names are looked for in its source."""
    import inspect

    from mlflow.system_metrics.metrics import gpu_monitor
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    monitor = CPUMonitor()
    monitor.collect_metrics()
    source = inspect.getsource(gpu_monitor)
    for name in {name for name, _, _, _ in system_samples(ROWS)}:
        plain = name.removeprefix("system/").replace("gpu_0", "gpu_{i}").replace("gpu_1", "gpu_{i}")
        assert plain in monitor.metrics or f'f"{plain}"' in source


def test_speed_is_by_optimizer_step_on_the_path() -> None:
    def row(done: int, **facts: object) -> dict[str, object]:
        return {"time": float(done), "done": done, "unit": "steps", "tokens_per_second": 10.0 * done, **facts}

    rows = [{"time": 0.0}, row(2), row(2), row(3, unit="completions"), row(5), row(8)]
    # Steps 8 on are the branch's last: the branch's own count stands there.
    assert list(speed_samples(rows, 100, 108)) == [
        ("tokens_per_second", 20.0, 102, 2.0), ("tokens_per_second", 50.0, 105, 5.0),
    ]  # fmt: skip
