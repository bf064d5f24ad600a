"""Who may run next, and on which devices. No thread, process or clock: the pool asks, under its lock.

Invariants: no device is in two jobs; a job that waits keeps what it needs from every job behind it, so a large one is
never overtaken for ever by small ones; and jobs that need no device wait for none.
What other runs of the machine hold, `claim` knows (`mot_core.workers.devices`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mot_core.errors import SpecError
from mot_core.steps import Step

Turn = tuple[int, int]
"""A job's place in the queue: urgency (the lowest first), then number."""
Claim = Callable[[Sequence[str], int], tuple[str, ...] | None]
"""So many of the devices that are free here, for the whole machine; None while other runs have them."""


def the_first(free: Sequence[str], count: int) -> tuple[str, ...]:
    """The claim of a run that is alone on its machine."""
    return tuple(free[:count])


class Slots:
    """A machine's devices and the places for jobs. A machine without devices gives every job a place and no device.

    Jobs on devices and jobs without have `num_jobs` places each, or with `shared`, together.
    """

    def __init__(self, devices: Sequence[str], num_jobs: int, *, shared: bool) -> None:
        self.devices = tuple(devices)
        self._free = list(self.devices)
        self._shared = shared or not self.devices
        self._places = {False: num_jobs, True: num_jobs}
        self._waiting: dict[Turn, int] = {}
        self._refused: set[Turn] = set()

    @property
    def num_free(self) -> int:
        """Devices that no job has."""
        return len(self._free)

    def enter(self, turn: Turn, num_devices: int) -> None:
        """Join the queue with a need for devices, which a machine without any takes for none.

        Raises:
            SpecError: more devices than the machine has; the job would wait for ever.
        """
        if self.devices and num_devices > len(self.devices):
            raise SpecError(
                f"the job needs {num_devices} devices, but there are {len(self.devices)} ({', '.join(self.devices)})"
            )
        self._waiting[turn] = num_devices if self.devices else 0

    def leave(self, turn: Turn) -> None:
        """Leave the queue without having run."""
        self._waiting.pop(turn, None)
        self._refused.discard(turn)

    @property
    def refused(self) -> bool:
        """Whether a job waits for devices that another run has: nothing here tells when they are free."""
        return bool(self._refused)

    def take(self, turn: Turn, claim: Claim = the_first) -> tuple[str, ...] | None:
        """The devices of a job that may start now, in the machine's order; None while it has to wait."""
        devices, places = len(self._free), dict(self._places)
        for ahead, needed in sorted(self._waiting.items()):
            kind = self._kind(needed)
            devices, places[kind] = devices - needed, places[kind] - 1
            if ahead == turn:
                if (needed and devices < 0) or places[kind] < 0:
                    return None
                taken = claim(tuple(self._free), needed) if needed else ()
                if taken is None:
                    self._refused.add(turn)
                    return None
                self.leave(turn)
                self._places[kind] -= 1
                self._free = [name for name in self._free if name not in taken]
                return taken
            if ahead in self._refused and self._waiting[turn]:
                return None
        raise KeyError(f"turn {turn} is not in the queue")

    def give_back(self, devices: Sequence[str]) -> None:
        """A job has ended: its devices and its place are free."""
        self._places[self._kind(len(devices))] += 1
        self._free = sorted([*self._free, *devices], key=self.devices.index)

    def _kind(self, num_devices: int) -> bool:
        """Which places a job takes: those for jobs on devices, or the others."""
        return num_devices > 0 or self._shared


def devices_needed(step: Step) -> int:
    """How many devices a step takes where there are any; none for one that leaves them idle."""
    if step.kind in ("branch", "on-policy"):
        return int((step.locators.get("layout") or {}).get("devices", 1))
    if step.kind in _ASKED:
        if step.spec["completer"] in ("openai", "corpus"):
            return 0
        settings = step.locators.get(f"{_ASKED[step.kind]}_settings") or {}
        sizes = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
        tensor, pipeline, data = (int(settings.get(size, 1)) for size in sizes)
        return tensor * pipeline * data
    if step.kind == "corpora":
        return int(step.spec["choice"] == "likeliest")  # the student reads every rationale
    if step.kind == "merge":
        return int("barrier" in step.spec)  # weights are merged in the host's memory
    return int(step.kind in ("harness", "confidence", "landscape"))


_ASKED = {"completions": "teacher", "judgements": "judge", "evaluation": "student"}
"""Kinds of steps that sample a model, and the role whose settings an engine has."""
