"""Whether the servers of `mot up` ask who is there, and the administrator that MLflow knows.

Invariant: HOME/mlflow-auth.ini, which only its owner can read, holds the password that MLflow takes, whatever the environment says.
"""

from __future__ import annotations

import base64
import configparser
import io
import ipaddress
import json
import os
import secrets
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from mot_core.errors import SpecError, StoreError

LOOPBACK = "127.0.0.1"
PREFECT_AUTH = "PREFECT_SERVER_API_AUTH_STRING"
MLFLOW_AUTH = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
CONFIG, USERS = "mlflow-auth.ini", "mlflow-auth.db"


def check_address(host: str) -> None:
    """Raise `SpecError` unless an address is loopback, or both servers ask who is there."""
    try:
        if ipaddress.ip_address(host).is_loopback:
            return
    except ValueError:
        raise SpecError(
            f"--host {host!r} is no address; expected one such as {LOOPBACK} (a name could mean several)"
        ) from None
    missing = [name for name in (PREFECT_AUTH, *MLFLOW_AUTH) if not os.environ.get(name)]
    if missing:
        raise SpecError(
            f"--host {host} is reached from other machines, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} "
            f"not set: whoever finds the port could run code here. Set {PREFECT_AUTH} (user:password, Prefect's) and "
            f"{' and '.join(MLFLOW_AUTH)} (MLflow's administrator), or stay on {LOOPBACK} and use an SSH tunnel"
        )


def administrator() -> tuple[str, str] | None:
    """MLflow's administrator and password, where the environment names both: then it asks who is there."""
    user, password = (os.environ.get(name) for name in MLFLOW_AUTH)
    return (user, password) if user and password else None


def mlflow_environment(home: Path, user: str, password: str) -> dict[str, str]:
    """What MLflow needs to ask who is there. It makes the administrator at its first start and never changes the password by
    itself, so the file keeps the one that it knows."""
    _write_config(home, user, known_password(home, user) or password)
    return {"MLFLOW_AUTH_CONFIG_PATH": str(home / CONFIG), "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32)}


def known_password(home: Path, user: str) -> str | None:
    """The password that MLflow took last for this administrator."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(home / CONFIG)
    section = config["mlflow"] if config.has_section("mlflow") else {}
    return section.get("admin_password") if section.get("admin_username") == user else None


def take_password(home: Path, url: str, user: str, password: str) -> None:
    """See that MLflow takes the administrator's password, telling it a new one with the one that it knows.

    Raises:
        SpecError: MLflow takes neither.
    """
    known = known_password(home, user)
    if not _accepts(url, user, password):
        change = {"username": user, "password": password, "current_password": known}
        if known is None or not _accepts(url, user, known, "users/update-password", change):
            raise SpecError(
                f"MLflow at {url} does not take {MLFLOW_AUTH[1]} for user {user!r}, which it has known with another password; "
                f"set that one, or remove {home / USERS} while nothing runs (with it go MLflow's other accounts)"
            )
    if known != password:
        _write_config(home, user, password)


def _accepts(
    url: str, user: str, password: str, path: str = "experiments/search?max_results=1",
    change: dict[str, str | None] | None = None,
) -> bool:  # fmt: skip
    """Whether MLflow answers a user, or changes what it asks to change."""
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}
    body, method = (None, "GET") if change is None else (json.dumps(change).encode(), "PATCH")
    try:
        with urlopen(Request(f"{url}/api/2.0/mlflow/{path}", body, headers, method=method), timeout=30) as answer:
            return bool(answer.status == 200)
    except HTTPError as error:
        with error:
            if error.code in (401, 403):
                return False
            raise StoreError(f"MLflow at {url}: {path}: {error}") from None


def _write_config(home: Path, user: str, password: str) -> None:
    config = configparser.ConfigParser(interpolation=None)
    config["mlflow"] = {
        "default_permission": "READ", "database_uri": f"sqlite:///{home / USERS}",
        "admin_username": user, "admin_password": password,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }  # fmt: skip
    text = io.StringIO()
    config.write(text)
    with os.fdopen(os.open(home / CONFIG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text.getvalue())
