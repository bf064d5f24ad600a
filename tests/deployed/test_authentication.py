"""`mot up` with both servers asking who is there: a run goes through, nobody else gets in, and no password is written down.

On loopback: the same processes with the same settings as on an address that others reach, but for where they listen.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from flows.serving.authentication import MLFLOW_AUTH, PREFECT_AUTH
from tests.serving import authorization, serving

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PREFECT_PASSWORD, MLFLOW_PASSWORD = "secret-of-prefect-7f3a", "secret-of-mlflow-91cd"


def test_servers_that_ask_who_is_there_serve_a_run_and_nobody_else(tmp_path: Path) -> None:
    given = {
        PREFECT_AUTH: f"ann:{PREFECT_PASSWORD}",
        MLFLOW_AUTH[0]: "ann",
        MLFLOW_AUTH[1]: MLFLOW_PASSWORD,
    }
    with serving(tmp_path, **given) as served:
        addresses = (
            f"{served.prefect}/api/deployments/name/experiment/experiment",
            f"{served.mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name=smoke",
        )
        for address in addresses:
            for stranger in (
                None,
                "ann:wrong",
                f"ann:{PREFECT_PASSWORD if address is addresses[1] else MLFLOW_PASSWORD}",
            ):
                with pytest.raises(HTTPError) as refused:
                    urlopen(Request(address, headers=authorization(stranger)), timeout=30)
                with refused.value as answer:
                    assert answer.code == 401
        overrides = ['methods=[{"name": "base"}]', "evaluation.path.rounds=last"]
        served.ends(served.submit("experiment/experiment", {"preset": "smoke", "overrides": overrides}), "COMPLETED")
        [tracking] = served.store.glob("runs/*/tracking.json")
        assert json.loads(tracking.read_text())["state"] == "logged"
        known = Request(addresses[1], headers=authorization(f"ann:{MLFLOW_PASSWORD}"))
        with urlopen(known, timeout=30) as answer:
            assert json.load(answer)["experiment"]["name"] == "smoke"
        secret = served.home / "mlflow-auth.ini"
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600 and MLFLOW_PASSWORD in secret.read_text()
        for path in (one for one in tmp_path.rglob("*") if one.is_file() and one != secret):
            text = path.read_bytes()
            assert PREFECT_PASSWORD.encode() not in text and MLFLOW_PASSWORD.encode() not in text, path

        # MLflow keeps the password that it was first started with, unless it is told another.
        served.mot("down", "--home", str(served.home))
        served.environment[MLFLOW_AUTH[1]] = "another-secret-of-mlflow-5b"
        served.up()
        again = f"{served.mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name=smoke"
        with urlopen(Request(again, headers=authorization("ann:another-secret-of-mlflow-5b")), timeout=30) as answer:
            assert json.load(answer)["experiment"]["name"] == "smoke"
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(again, headers=authorization(f"ann:{MLFLOW_PASSWORD}")), timeout=30)
        with refused.value as answer:
            assert answer.code == 401
        assert MLFLOW_PASSWORD not in secret.read_text() and stat.S_IMODE(secret.stat().st_mode) == 0o600
