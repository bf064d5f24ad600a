"""The document of findings: what studies gave, put where a document asks for it, with its figure beside it.

A document asks by a pair of marks, `<!-- study rounds lab -->` and `<!-- end -->`; what stands between them is replaced by the
newest such run's paragraph, figure and table. Invariant: everything outside the marks, such as how people read a result, stays
as it is.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from flows.studies import study_named
from flows.studies.base import setup_of, study_identity
from mot_core.analysis.page import STUDY, markdown
from mot_core.artifacts import Store
from mot_core.errors import SpecError, StoreError
from mot_core.files import write_atomically

_PLACE = re.compile(r"(<!-- study (?P<name>[a-z-]+) (?P<size>[a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write_findings(store: Store, document: Path) -> list[str]:
    """Fill a Markdown document's marked places from a store; the studies that were put in, as `NAME SIZE`. Figures go to
    `images/studies/` beside the document.

    Raises:
        SpecError: a document without such a place.
        StoreError: a study that has not run in this store.
    """
    text = document.read_text(encoding="utf-8")
    if not _PLACE.search(text):
        raise SpecError(f"{document} has no place for a study; mark one with <!-- study NAME SIZE --> and <!-- end -->")
    wanted = {(found["name"], found["size"]) for found in _PLACE.finditer(text)}
    runs = {place: newest_run(store, *place) for place in sorted(wanted)}  # as the sizes stand now
    images = document.parent / "images" / "studies"
    images.mkdir(parents=True, exist_ok=True)
    for (name, size), run_dir in runs.items():
        (images / f"{name}-{size}.png").write_bytes((run_dir / "figure.png").read_bytes())

    def filled(found: re.Match[str]) -> str:
        place = (found["name"], found["size"])
        record: dict[str, Any] = json.loads((runs[place] / STUDY).read_text())
        picture = f"![{record['study']}](images/studies/{place[0]}-{place[1]}.png)"
        return f"{found[1]}\n{markdown(record, picture)}\n{_cost(record)}\n\n{found[4]}"

    write_atomically(document, _PLACE.sub(filled, text))
    return [f"{name} {size}" for name, size in runs]


def newest_run(store: Store, name: str, size: str) -> Path:
    """The newest finished run of a study at a size, as the size stands now: runs with overrides are other runs.

    Raises:
        StoreError: there is none.
    """
    study = study_named(name)
    identity = study_identity(study, setup_of(study, size))
    paths = (store.root / "runs").glob(f"study-{name}-{size}-*/{STUDY}")
    found = [path.parent for path in paths if json.loads(path.read_text())["identity"] == identity]
    if not found:
        raise StoreError(
            f"study {name} at size {size} has not run in {store.root}; mot study {name} --size {size} runs it"
        )
    return max(found, key=lambda path: (path / STUDY).stat().st_mtime)


def _cost(record: dict[str, Any]) -> str:
    """What the run computed and how long it took, as it was."""
    counts, host = record["step_counts"], record["provenance"]["host"]
    return (
        f"Run `{record['run_id']}`: {counts['run']} steps computed, {counts['reused']} reused, "
        f"{record['wall_seconds'] / 60:.1f} minutes on {record['provenance']['workers']} workers "
        f"({host.get('cpus', '?')} cores)."
    )
