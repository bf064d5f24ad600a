"""Where and how engines run: devices, `vllm.LLM`'s arguments, environment, and whether there is memory for them.

Invariant: weights are read from safetensors only and no code of a model is run, whatever a spec says.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mot_core.completers.base import Source
from mot_core.completers.memory import GIB, Gpu, require_gpu_memory, require_memory, weight_bytes
from mot_core.completers.vllm_process import Launch
from mot_core.errors import WorkerError
from mot_core.processes import clean_environment
from mot_core.spec import Engine

DEFAULT_CACHE_GIB = 1
STREAM_INTERVAL = 32
"""Tokens of a request between two counts of progress."""


def launches(source: Source, engine: Engine, directory: Path) -> list[Launch]:
    """The engines to start for a model directory, each with its devices and log."""
    logs = source.scratch or Path(tempfile.gettempdir())
    logs.mkdir(parents=True, exist_ok=True)
    arguments = engine_arguments(source, engine, directory)
    return [
        Launch(arguments, environment(source, engine, arguments, devices), logs / f"vllm-{os.getpid()}-{number}.log")
        for number, devices in enumerate(engine_devices(engine, source.devices))
    ]


def engine_devices(engine: Engine, devices: Sequence[str]) -> list[list[str]]:
    """Each engine's share of its job's devices, as in CUDA_VISIBLE_DEVICES; none on the CPU.

    Raises:
        WorkerError: fewer devices than the engines take.
    """
    if not devices:
        return [[] for _ in range(engine.data_parallel_size)]
    size = engine.tensor_parallel_size * engine.pipeline_parallel_size
    if engine.num_devices > len(devices):
        raise WorkerError(
            f"engine: tensor_parallel_size {engine.tensor_parallel_size} × pipeline_parallel_size "
            f"{engine.pipeline_parallel_size} × data_parallel_size {engine.data_parallel_size} need {engine.num_devices} "
            f"devices, but the job has {len(devices)} ({', '.join(devices)}); give it as many"
        )
    return [list(devices[start : start + size]) for start in range(0, engine.num_devices, size)]


def engine_arguments(source: Source, engine: Engine, directory: Path) -> dict[str, Any]:
    """`vllm.LLM`'s arguments."""
    if source.device == "cpu":
        # A prompt that is read in two steps moves its generator back, which generators on a CPU refuse: a seeded request
        # then ends the engine (vLLM 0.32: "CPU Generator does not use offset").
        own: dict[str, Any] = {"enforce_eager": True, "enable_chunked_prefill": False}
        if engine.tensor_parallel_size * engine.pipeline_parallel_size == 1:
            own["distributed_executor_backend"] = "uni"
    else:
        own = {"gpu_memory_utilization": engine.gpu_memory_utilization}
    return {
        "model": str(directory), "trust_remote_code": False, "load_format": "safetensors", "skip_tokenizer_init": True,
        "generation_config": "vllm", "stream_interval": STREAM_INTERVAL,
        "dtype": stored_precision(directory) if engine.dtype == "auto" else engine.dtype,
        "quantization": engine.quantization, "max_model_len": engine.max_model_len,
        "tensor_parallel_size": engine.tensor_parallel_size, "pipeline_parallel_size": engine.pipeline_parallel_size,
        **own, **engine.engine_args,
    }  # fmt: skip


def stored_precision(directory: Path) -> str:
    """`float32` for weights stored so, which vLLM's own `auto` would round to 16 bits; else `auto`."""
    config = json.loads((directory / "config.json").read_text())
    stored = config.get("dtype") or config.get("torch_dtype")
    return "float32" if stored == "float32" else "auto"


def environment(source: Source, engine: Engine, arguments: dict[str, Any], devices: list[str]) -> dict[str, str]:
    """An engine's environment: defaults that a user's own settings go before, then what has to be."""
    defaults = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    if devices:
        return clean_environment(defaults, {"CUDA_VISIBLE_DEVICES": ",".join(devices)})
    # Bound, the engines of several workers would share the first cores and leave the others idle.
    defaults |= {"VLLM_CPU_KVCACHE_SPACE": str(DEFAULT_CACHE_GIB), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    # Threads that spin while they wait starve whoever shares their cores, and each other: on two busy cores a 1 M model
    # wrote 1,500 tokens/s with the default and 13,300 with this.
    defaults["OMP_WAIT_POLICY"] = "PASSIVE"
    if arguments["enforce_eager"]:
        defaults["TORCH_COMPILE_DISABLE"] = "1"
    if arguments.get("distributed_executor_backend") == "uni":
        defaults["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # start-up takes 3 s instead of 18
    processes = engine.data_parallel_size * engine.tensor_parallel_size * engine.pipeline_parallel_size
    return clean_environment(defaults, {"OMP_NUM_THREADS": str(max(1, source.threads // processes))})


def require_free_memory(source: Source, engine: Engine, directory: Path) -> list[Gpu]:
    """The devices as they are before the engines start.

    Raises:
        WorkerError: the machine or a device has no room for them; the message names who has it.
    """
    devices = [device for devices in engine_devices(engine, source.devices) for device in devices]
    if devices:
        return require_gpu_memory(devices, engine.gpu_memory_utilization)
    cache = int(os.environ.get("VLLM_CPU_KVCACHE_SPACE") or DEFAULT_CACHE_GIB) * GIB
    processes = engine.tensor_parallel_size * engine.pipeline_parallel_size
    require_memory(weight_bytes(directory), processes * cache, processes, engine.data_parallel_size)
    return []
