"""What the tracker is told about one night: a run in the experiment `nightly`, with the digest in numbers and as files.

Invariant: nights are runs of their own, told apart by nightly, number and beginning, so that two stores may share a tracker.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mot_core.files import sha256_of
from mot_core.identity import fingerprint
from mot_core.nightly.digest import metrics_of
from mot_core.nightly.nights import DIGEST
from tasks.tracking_records import PlannedRun, short_text

NIGHTS = "nightly"
_FILES = (DIGEST, "digest.md", "digest.html")


def plan_night(directory: Path) -> list[PlannedRun]:
    """The one run to log for a night."""
    digest: dict[str, Any] = json.loads((directory / DIGEST).read_text())
    name, night, started = digest["nightly"], digest["night"], float(digest["started"])
    tags = {
        "mot.role": "night", "mot.spec": fingerprint([name, night, started]), "mot.nightly": short_text(name),
        "mot.state": digest["state"], "mot.canary": digest["canary"]["verdict"],
    }  # fmt: skip
    params = {"nightly": name, "night": night, "base": digest["spec"]["base"], "identity": digest["identity"]}
    return [
        PlannedRun(
            "night", None, f"{name} {night}", tags, {}, params,
            tuple((metric, value, int(night)) for metric, value in metrics_of(digest)), (), None,
            tuple((directory / file, None) for file in _FILES), {DIGEST: sha256_of(directory / DIGEST)}, started,
            started + 60.0 * digest["spent"]["minutes"],
        )
    ]  # fmt: skip
