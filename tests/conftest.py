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
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{_HOME}/prefect.db",
    }
)
for _name in ("PREFECT_API_URL", "PREFECT_PROFILE"):
    os.environ.pop(_name, None)

import pytest  # noqa: E402

from mot_core.spec import Experiment  # noqa: E402

if TYPE_CHECKING:
    from tests.serving import Served

ROOT = Path(__file__).resolve().parent.parent


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
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The servers, workers and deployments of `mot up`, shared by every test that needs them."""
    from tests.serving import serving

    with serving(tmp_path_factory.mktemp("served")) as running:
        yield running
