"""What a method is given and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from mot_core.dag import Do, StudentAt, branch_step
from mot_core.spec import Experiment
from mot_core.steps import Step
from mot_core.world import World


@dataclass(frozen=True)
class Distilled:
    """One student's path: by round, where it stands. Round 0 is the untrained student; between two boundaries, inside a
    round, the number is no whole one (`mot_core.dag.round_at`).

    `label` names it in tables: the method's name, with the teacher where there is a student for each
    (`std/<teacher>`). `path_steps` counts the optimizer steps along the path.
    """

    label: str
    rounds: dict[float, StudentAt]
    path_steps: dict[float, int]
    branches: tuple[Step, ...] = ()
    merges: tuple[tuple[int, Step], ...] = ()
    teacher: str | None = None
    final_round: int | None = None


@dataclass(frozen=True)
class Setting:
    """What a method works with: its name, the spec with the method's own training, the matched corpora, its budget,
    learning rate and training seed."""

    name: str
    spec: Experiment
    world: World
    corpora: Step
    budget: str
    seed: int
    learning_rate: float
    snapshot_steps: list[int] = field(default_factory=list)

    @property
    def start(self) -> StudentAt:
        """The untrained student θ₀."""
        return StudentAt(self.world.student)

    @property
    def teachers(self) -> list[str]:
        """Whose corpora the method has: the experiment's teachers, or those that its entry names."""
        own = next((method.teachers for method in self.spec.methods if method.name == self.name), None)
        return list(own) if own is not None else [teacher.name for teacher in self.spec.teachers]

    @property
    def path_length(self) -> int:
        """T × S optimizer steps: one path's length under the matched-path budget."""
        return self.spec.rounds * self.spec.steps_per_round

    def full_branch(self, names: list[str], *, num_steps: int, label: str, teacher: str | None) -> Step:
        """One uninterrupted branch from the untrained student."""
        return branch_step(
            self.spec, self.start, self.corpora, names, learning_rate=self.learning_rate, seed=self.seed,
            first_step=0, num_steps=num_steps, total_steps=num_steps,
            snapshot_steps=self.snapshot_steps if num_steps == self.path_length else [],
            label=label, facts={"method": self.name, "teacher": teacher, "budget": self.budget},
        )  # fmt: skip


class Method(Protocol):
    """Builds the steps of one method for one seed and budget, and hands them to `do`."""

    def __call__(self, setting: Setting, do: Do) -> list[Distilled]: ...
