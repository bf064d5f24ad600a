"""The studies: every claim of the paper, and what its reviewers asked for, as something that can be run.

A study is one small file here with an entry below, and its sizes in `deployments/studies/NAME.yaml`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mot_core.errors import SpecError
from mot_core.spec import nearest
from mot_core.steps import load_object

if TYPE_CHECKING:
    from flows.studies.base import Study

STUDIES: dict[str, str] = {
    "best-teacher": "flows.studies.best_teacher:STUDY",
    "methods": "flows.studies.methods:STUDY",
    "rounds": "flows.studies.rounds:STUDY",
    "samples": "flows.studies.samples:STUDY",
    "forgetting": "flows.studies.forgetting:STUDY",
    "teachers": "flows.studies.teachers:STUDY",
    "consensus": "flows.studies.consensus:STUDY",
    "transfer": "flows.studies.transfer:STUDY",
    "merges": "flows.studies.merges:STUDY",
    "filters": "flows.studies.filters:STUDY",
    "on-policy": "flows.studies.on_policy:STUDY",
}


def study_named(name: str) -> Study:
    """A study by its name, or by the import path of one of your own.

    Raises:
        SpecError: no such study, with the nearest right name.
    """
    if name not in STUDIES and ":" not in name:
        raise SpecError(f"there is no study {name!r}; {nearest(name, STUDIES)}studies: {', '.join(STUDIES)}")
    found: Study = load_object(STUDIES.get(name, name), f"study {name!r}")
    return found
