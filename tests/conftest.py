"""What every test needs: a quiet, offline, single-threaded process, and pico models."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

_HOME = tempfile.mkdtemp(prefix="mot-tests-")
# Before anything imports Prefect, MLflow, torch or transformers; child processes inherit it.
os.environ.update(
    {
        "PREFECT_HOME": f"{_HOME}/prefect",
        "XDG_RUNTIME_DIR": f"{_HOME}/runtime",  # devices that tests play are no other session's
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{_HOME}/prefect.db",
    }
)
# Processes that tests start keep what Python compiles: hundreds of them import the same files.
for _name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from mot_core.spec import Experiment  # noqa: E402

if TYPE_CHECKING:
    from tests.serving import Served

ROOT = Path(__file__).resolve().parent.parent
# How long an example takes is the machine's business.
settings.register_profile("mot", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mot")


def pytest_configure(config: pytest.Config) -> None:
    """Third parties' own warnings, each by its message and origin; ours stay errors."""
    for line in (
        "ignore:.*swigvarlink.*:DeprecationWarning",
        "ignore:.*SwigPy.*:DeprecationWarning",
        "ignore:`torch.jit.*:DeprecationWarning",
        # MLflow 3.17's tables with SQLAlchemy 2.1; as an error it would leave the tables unusable for the whole session.
        "ignore:The ``noload`` loader strategy is deprecated.*",
        "ignore:.*:DeprecationWarning:mlflow.*",
        "ignore:.*:FutureWarning:mlflow.*",
        "ignore:.*:DeprecationWarning:alembic.*",
        "ignore:unclosed database:ResourceWarning",  # MLflow leaves its SQLite connections to the garbage collector
    ):
        config.addinivalue_line("filterwarnings", line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that two workers, each with a file at a time, end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> None:
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def pico_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the pico models `student`, `ann` and `bob`."""
    import torch

    from tests.pico import write_pico_model

    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("student", "ann", "bob"), 1):
        write_pico_model(directory / name, seed)
    return directory


@pytest.fixture
def pico_spec(pico_models: Path) -> Experiment:
    """The smallest experiment with every stage."""
    from tests.pico import pico_experiment

    return pico_experiment(pico_models)


@pytest.fixture
def drive_environment() -> dict[str, Any]:
    """The environment of a driver process."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def _prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from tests.servers import prefect_server

    with prefect_server(tmp_path_factory.mktemp("prefect-api"), "--no-services", "--no-ui") as (url, _):
        yield url


@pytest.fixture(scope="module")
def prefect_api(_prefect_url: str) -> Iterator[None]:
    """One server for the flow runs of all processes that a module's tests start; a temporary server for each, which is
    what they start by themselves, takes as long as a small run does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", _prefect_url)
        yield


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The servers, workers and deployments of `mot up`, shared by every test that needs them."""
    from tests.serving import serving

    with serving(tmp_path_factory.mktemp("served")) as running:
        yield running
