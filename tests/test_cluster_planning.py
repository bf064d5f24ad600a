"""Plans for several nodes: schedules hold their invariants whatever the graph, and one round is as computed by hand."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from flows.run import outline_of
from flows.show_cluster import cluster_tables
from mot_core.cluster_planning import bounds, branch_by_branch, by_node, idle_share, on_nodes, outlooks, saturation
from mot_core.errors import SpecError
from mot_core.node_planning import NodePlan, imagined_world, plan_for_node
from mot_core.nodes import Assumptions, Cluster, Node
from mot_core.scheduling import NodeStep, Place, parents_within, schedule, together
from mot_core.spec import Experiment
from mot_core.spec_files import load_specs
from mot_core.steps import Step
from tasks.invocation import PRIORITY
from tests.test_planning import experiment, mot, training

KINDS = ("branch", "merge", "completions", "evaluation")


def made_plan(steps: list[NodeStep], node: str, num_nodes: int = 1, student_bytes: float = 0.0) -> NodePlan:
    machine = Node.parse(node)
    places = schedule(steps, machine, PRIORITY, num_nodes)
    return NodePlan(machine, Assumptions(), steps, places, {}, [], [], PRIORITY, student_bytes, num_nodes)


def node_step(kind: str, number: int, parents: list[tuple[str, Step]], devices: int, seconds: float) -> NodeStep:
    step = Step(kind, {"number": number}, tuple(parents), label=f"{kind} {number}")
    return NodeStep(step, devices, seconds=seconds)


@st.composite
def graphs(draw: st.DrawFn) -> list[NodeStep]:
    """Steps of every sort, parents first; merges take no device, an evaluation has a student of those before it."""
    steps: list[NodeStep] = []
    for number in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(KINDS))
        chosen = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        parents = [(f"parent/{index}", steps[index].step) for index in sorted(chosen)]
        if kind == "evaluation" and parents:
            parents[0] = ("student", parents[0][1])
        devices = 0 if kind == "merge" else draw(st.sampled_from((0, 1, 1, 2, 4)))
        steps.append(node_step(kind, number, parents, devices, float(draw(st.integers(0, 6)))))
    return steps


def paper() -> Experiment:
    return load_specs("paper-qwen3-14b:boba")[0]


def planned(spec: Experiment, node: str, num_nodes: int) -> NodePlan:
    _, steps = outline_of(spec, imagined_world(spec))
    return plan_for_node(spec, steps, Node.parse(node), PRIORITY, ask_hub=False, num_nodes=num_nodes)


def printed(plan: NodePlan, list_steps: bool = False) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        for part in cluster_tables(plan, list_steps):
            console.print(part)
    return capture.get()


# --- clusters --------------------------------------------------------------------------------------------------------


def test_clusters_by_name() -> None:
    assert Cluster.parse("4x8xH100") == Cluster(4, Node.parse("8xH100"))
    assert Cluster.parse(" 2 × 4xA100-40gb ") == Cluster(2, Node.parse("4xA100-40GB"))
    assert str(Cluster.parse("16x1x24GB")) == "16x1x24GB"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8xH100", "--cluster '8xH100': expected NODESxCOUNTxTYPE, e.g. 4x8xH100.*for one machine --node COUNTxTYPE"),
        ("0x8xH100", "expected NODESxCOUNTxTYPE"),
        ("4x0xH100", "--cluster '0xH100': expected COUNTxTYPE"),
        ("four nodes", "expected NODESxCOUNTxTYPE"),
        ("2x24GB", "expected NODESxCOUNTxTYPE"),
        ("4x8xH10", "--cluster '8xH10': GPU type 'H10' is not known; did you mean 'H100'"),
    ],
)
def test_a_cluster_that_is_none_says_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Cluster.parse(text)


# --- schedules -------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(graphs(), st.integers(1, 5))
def test_schedules_hold_their_invariants(steps: list[NodeStep], num_nodes: int) -> None:
    plan = made_plan(steps, "4xH100", num_nodes)
    assert plan.places is not None and plan.seconds is not None
    taken: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for one, place, parents in zip(steps, plan.places, parents_within(steps), strict=True):
        assert place.end == place.start + (one.seconds or 0.0)
        assert all(plan.places[parent].end <= place.start for parent in parents)
        assert 0 <= place.node < num_nodes and len(set(place.devices)) == len(place.devices) == one.devices
        for device in place.devices:
            taken.setdefault((place.node, device), []).append((place.start, place.end))
    for spans in taken.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert plan.seconds >= bounds(plan).seconds - 1e-9
    assert 0.0 <= idle_share(plan) <= 1.0


@settings(deadline=None)
@given(graphs(), st.integers(2, 5))
def test_a_student_is_evaluated_on_one_node(steps: list[NodeStep], num_nodes: int) -> None:
    nodes: dict[str, set[int]] = {}
    for one, place in zip(steps, schedule(steps, Node.parse("4xH100"), PRIORITY, num_nodes), strict=True):
        student = together(one.step)
        if student is not None:
            nodes.setdefault(student, set()).add(place.node)
    assert all(len(found) == 1 for found in nodes.values())


def test_what_is_slower_with_more_nodes_is_said() -> None:
    """The run's rule is no search: here the order in which four nodes are filled ends later than that of two."""
    jobs = [(1, 1, None), (1, 4, None), (2, 6, 0), (1, 4, 1), (2, 2, None), (1, 6, 2), (1, 6, None), (1, 4, None)]
    steps: list[NodeStep] = []
    for number, (devices, seconds, parent) in enumerate(jobs):
        parents = [("parent", steps[parent].step)] if parent is not None else []
        steps.append(node_step("branch", number, parents, devices, float(seconds)))
    plan = made_plan(steps, "2xH100")
    assert [one.seconds for one in outlooks(plan)] == [26.0, 13.0, 14.0, 13.0]
    (line,) = (line for line in printed(plan).splitlines() if "slower than with fewer" in line)
    assert line.startswith("4 ")


def test_a_large_job_is_not_overtaken_and_holds_back_one_node_only() -> None:
    small = [node_step("branch", number, [], 1, 10.0) for number in range(2)]
    large = node_step("branch", 2, [], 4, 5.0)
    later = [node_step("branch", number, [], 3, 1.0) for number in (3, 4)]
    places = schedule([*small, large, *later], Node.parse("4xH100"), PRIORITY, 2)
    assert [place.node for place in places[:2]] == [0, 1]  # spread
    assert places[2] == Place(10.0, 15.0, 0, ("0", "1", "2", "3"))  # node 0 was kept for it from the two that follow
    assert [(place.start, place.node) for place in places[3:]] == [(0.0, 1), (1.0, 1)]


# --- one round by hand -----------------------------------------------------------------------------------------------


def four_teachers(**changes: Any) -> Experiment:
    rows = {"model": "x/rows", "completer": "corpus", "rationales": {"hub": "own/rows", "format": "openmathreasoning"}}
    evaluation = experiment().evaluation.model_dump(mode="json", exclude_none=True)
    engine = {**evaluation["engine"], "data_parallel_size": 8}
    return experiment(
        teachers=[{"name": name, **rows} for name in "abcd"], methods=[{"name": "mot"}], rounds=2,
        training=training(), evaluation={**evaluation, "engine": engine, "path": {"rounds": "last"}, **changes},
    )  # fmt: skip


def test_a_round_of_four_branches_over_four_nodes_by_hand() -> None:
    plan = planned(four_teachers(), "8xH100", 4)
    of = {kind: [one for one in plan.steps if one.step.kind == kind] for kind in ("branch", "merge", "evaluation")}
    branch, merge = (of[kind][0].seconds or 0.0 for kind in ("branch", "merge"))
    evaluations = sum(one.seconds or 0.0 for one in of["evaluation"])
    assert plan.seconds == pytest.approx(2 * (branch + merge) + evaluations)
    found = bounds(plan)
    assert found.path_seconds == pytest.approx(plan.seconds) and found.seconds == found.path_seconds
    assert [(kind, count) for kind, count, _ in found.path_parts()] == [
        ("branch", 2), ("merge", 2), ("evaluation", len(of["evaluation"]))
    ]  # fmt: skip
    rows = branch_by_branch(plan)
    assert [one.step.kind for one, _ in rows] == [*["branch"] * 4, "merge"] * 2
    for first in (0, 5):
        assert sorted(place.node for _, place in rows[first : first + 4]) == [0, 1, 2, 3]
        assert len({place.start for _, place in rows[first : first + 4]}) == 1
    assert on_nodes(plan, 8).seconds == plan.seconds  # a round has four branches
    assert on_nodes(plan, 1).seconds == pytest.approx(2 * (4 * branch + merge) + evaluations)
    work = 8 * (8 * branch + evaluations)
    assert idle_share(plan) == pytest.approx(1 - work / (32 * plan.seconds))
    assert saturation(plan) == -(-work // (8 * plan.seconds))


def test_what_passes_the_store_by_hand() -> None:
    plan = planned(four_teachers(), "8xH100", 4)
    weights, shares = plan.student_bytes, by_node(plan)
    assert weights == 4 * 14_768_307_200
    total = {
        (way, what): sum(getattr(share.traffic, way).get(what, 0.0) for share in shares)
        for way in ("written", "read") for what in ("students", "merges")
    }  # fmt: skip
    assert total["written", "students"] == 8 * weights and total["written", "merges"] == 2 * weights
    assert total["read", "students"] == 8 * weights  # each branch once, by its merge
    # The first merge by four branches and the second merge, the second by its student's evaluations, once.
    assert total["read", "merges"] == (4 + 1 + 1) * weights
    assert [share.branches for share in shares] == [2, 2, 2, 2] and sum(share.merges for share in shares) == 2


def test_moments_that_rounds_carry_pass_the_store_as_well() -> None:
    carried = four_teachers().model_copy(
        update={"training": four_teachers().training.model_copy(update={"optimizer_between_rounds": "carry"})}
    )
    shares = by_node(planned(carried, "8xH100", 4))
    weights = 4 * 14_768_307_200
    assert sum(share.traffic.read["students"] for share in shares) == (8 + 4 * 2) * weights
    assert sum(share.traffic.written["students"] for share in shares) == (8 + 4 * 2) * weights


@pytest.mark.parametrize(("teachers", "rounds", "seeds"), [(1, 1, 1), (2, 3, 1), (4, 5, 3)])
def test_the_counts_of_the_page_are_the_graphs(teachers: int, rounds: int, seeds: int) -> None:
    """K, T and n in the formulas of docs/scale.md, with two benchmarks of the laboratory."""
    base = load_specs("smoke")[0]
    named = tuple(
        base.teachers[0].model_copy(update={"name": f"teacher-{index}", "model": f"own/teacher-{index}"})
        for index in range(teachers)
    )
    spec = base.model_copy(
        update={
            "teachers": named, "rounds": rounds, "training_seeds": tuple(range(seeds)),
            "methods": tuple(one for one in base.methods if one.name == "mot"),
        }
    )  # fmt: skip
    _, steps = outline_of(spec, imagined_world(spec))
    k, t, n, b = teachers, rounds, seeds, len(spec.evaluation.benchmarks)
    assert len(steps) == 3 + 2 * b + 2 * k + n * (k * t + t + t * b + b)
    assert sum(step.kind in ("branch", "merge") for step in steps) == n * (k + 1) * t


def test_what_the_papers_methods_keep() -> None:
    """The students of docs/scale.md: all of them; the merges and the final ones; the final ones."""
    steps = [one.step for one in planned(paper(), "8xH100", 1).steps]
    trained = {step.identity: step for step in steps if step.kind in ("branch", "merge")}
    final = {
        parent.identity for step in steps if step.kind == "evaluation" and step.facts["split"] == "test"
        for role, parent in step.parents if role == "student"
    }  # fmt: skip
    assert sum(1 + len(step.spec.get("snapshot_steps", ())) for step in trained.values()) == 243
    assert len({identity for identity, step in trained.items() if step.kind == "merge"} | final) == 63
    assert len(final) == 39


# --- the paper's and the command -------------------------------------------------------------------------------------


def test_the_papers_plan_gains_from_every_node() -> None:
    found = outlooks(planned(paper(), "8xH100", 4))
    assert [one.num_nodes for one in found] == [1, 2, 4, 8]
    assert all(later.seconds < before.seconds for before, later in itertools.pairwise(found))
    assert all(one.bound_seconds <= one.seconds for one in found)
    assert found[2].seconds < 1.05 * found[2].bound_seconds
    assert [one.training_nodes for one in found] == [1, 2, 4, 8]


def test_a_node_and_a_cluster_of_one_agree(tmp_path: Path) -> None:
    asked = ["plan", "single-gpu-24gb:qwen3-4b-lora", "--steps"]
    node = mot(*asked, "--node", "2xL4", cwd=tmp_path)
    cluster = mot(*asked, "--cluster", "1x2xL4", cwd=tmp_path)
    assert node.returncode == cluster.returncode == 0, node.stderr + cluster.stderr
    assert cluster.stdout.startswith(node.stdout)
    rest = cluster.stdout.removeprefix(node.stdout)
    for part in (
        "branch by branch, 1x2xL4",
        "by node; what passes the shared store",
        "fewer or more nodes",
        "Bounded by",
    ):
        assert part in rest
    assert "finetune" in rest and "evaluate" in rest, "--steps lists evaluations as well"
    (hours,) = (line.split()[-2] for line in node.stdout.splitlines() if line.startswith("all "))
    assert f"1x2xL4: {hours} h" in rest
    assert list(tmp_path.iterdir()) == [], "a plan writes nothing"


def test_the_command_refuses_what_no_node_holds_and_two_machines_at_once(tmp_path: Path) -> None:
    preset = "single-gpu-24gb:qwen3-1.7b-full"
    both = mot("plan", preset, "--node", "1x24GB", "--cluster", "2x1x24GB", cwd=tmp_path)
    assert both.returncode == 1 and "--node 1x24GB --cluster 2x1x24GB: one of them" in both.stderr
    wrong = mot("plan", preset, "--cluster", "4x1x24GB", "--set", "training.gradient_checkpointing=false", cwd=tmp_path)
    assert wrong.returncode == 1 and "does not fit 4x1x24GB" in wrong.stderr and wrong.stdout == ""
    unknown = mot("plan", preset, "--cluster", "4x1x24GB", cwd=tmp_path)
    assert unknown.returncode == 0 and "4x1x24GB: no schedule, since hours are unknown" in unknown.stdout


def test_a_study_over_nodes_takes_fewer_hours(tmp_path: Path) -> None:
    hours = {}
    for option, machine in (("--node", "8xH100"), ("--cluster", "1x8xH100"), ("--cluster", "4x8xH100")):
        done = mot("study", "rounds", "--size", "paper", option, machine, cwd=tmp_path)
        assert done.returncode == 0 and f"on {machine}" in done.stdout, done.stderr
        hours[machine] = next(float(line.split()[-2]) for line in done.stdout.splitlines() if line.startswith("all "))
    assert hours["8xH100"] == hours["1x8xH100"] > 3 * hours["4x8xH100"]
