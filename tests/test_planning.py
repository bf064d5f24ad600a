"""Plans for a node: what fits, what is suggested where it does not, and costs and hours held against figures by hand."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.run import outline_of
from mot_core.architectures import known_architecture
from mot_core.artifacts import Manifest
from mot_core.errors import ModelError, SpecError
from mot_core.fitting import CHECKPOINTING, OFFLOADING, Fitting, Models, weights_and_cache
from mot_core.node_planning import NodePlan, attention_flops, imagined_world, plan_for_node
from mot_core.nodes import GIB, TYPES, Assumptions, Node
from mot_core.planning import Costs, ModelSize
from mot_core.planning import plan as plan_here
from mot_core.sft.memory import Pass, memory_of
from mot_core.spec import Engine, Experiment, Training
from mot_core.spec_files import load_specs, overridden, preset_names
from mot_core.world import resolve
from tasks.invocation import PRIORITY

ROOT = Path(__file__).resolve().parents[1]


def experiment(**changes: Any) -> Experiment:
    """Settings like the paper's: a 14B student, an engine as teacher, long rationales of hub problems."""
    document: dict[str, Any] = {
        "name": "planned",
        "student": {"name": "student", "model": "Qwen/Qwen3-14B"},
        "teachers": [
            {"name": "qwq", "model": "Qwen/QwQ-32B", "completer": "vllm",
             "engine": {"dtype": "bfloat16", "max_model_len": 18_432, "tensor_parallel_size": 2}},
            {"name": "r1", "model": "deepseek-ai/DeepSeek-R1", "completer": "openai",
             "endpoint": {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "NO_SUCH_KEY",
                          "price_per_million_prompt_tokens": 1.0, "price_per_million_completion_tokens": 3.0}},
        ],
        "problems": {"hub": "own/problems", "num_problems": 600},
        "generation": {"sampling": {"max_completion_tokens": 16_384}},
        "training": {"batch_size": 32, "max_example_tokens": 16_384, "precision": "bfloat16", "devices": 8,
                     "layout": "packed", "micro_batch_tokens": 16_384, "gradient_checkpointing": True},
        "methods": [{"name": "std"}, {"name": "mot"}],
        "evaluation": {
            "completer": "vllm", "engine": {"dtype": "bfloat16", "max_model_len": 18_432},
            "benchmarks": [{"name": "aime", "hub": "own/aime", "k": 4, "sampling": {"max_completion_tokens": 16_384}}],
        },
    }  # fmt: skip
    return Experiment.model_validate({**document, **changes})


def fitting(spec: Experiment, node: str) -> Fitting:
    return Fitting(spec, Node.parse(node), Assumptions(), Models(ask_hub=False))


def planned(spec: Experiment, node: str, **more: Any) -> NodePlan:
    _, steps = outline_of(spec, imagined_world(spec))
    return plan_for_node(spec, steps, Node.parse(node), PRIORITY, ask_hub=False, **more)


def training(**changes: Any) -> dict[str, Any]:
    return {**experiment().training.model_dump(mode="json", exclude_none=True), **changes}


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_nodes_by_name_and_by_memory() -> None:
    assert Node.parse("8xH100") == Node(8, TYPES["H100"])
    assert Node.parse("4XA100-80gb") == Node(4, TYPES["A100-80GB"])
    own = Node.parse("1x24GB")
    assert (own.gpu.memory_gib, own.gpu.bandwidth, own.gpu.rate("bfloat16")) == (24.0, None, None)
    assert TYPES["L4"].memory_gib == pytest.approx(22.5), "GDDR6 keeps its error correction in the memory"
    assert TYPES["A100-80GB"].rate("fp8") == 312e12 and TYPES["H100"].rate("fp8") == 1979e12
    for text, said in (
        ("8xH1000", "did you mean 'H100'"), ("H100", "expected COUNTxTYPE"), ("0xH100", "expected COUNTxTYPE"),
        ("2x0GB", "not known"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=said):
            Node.parse(text)


# --- what fits -------------------------------------------------------------------------------------------------------


def test_a_14b_student_in_full_on_eight_h100_but_not_on_one() -> None:
    spec = experiment()
    need = fitting(spec, "8xH100").needs["training"]
    assert need.fits and need.devices == 8
    largest = Pass(1, 16_384, 16_384)
    student = known_architecture("Qwen/Qwen3-14B")
    assert student is not None
    counted = memory_of(student.config, spec.training, largest)
    assert need.total == sum(counted.values()) + GIB
    assert not fitting(overridden(spec, ["training.devices=1"]), "1xH100").needs["training"].fits


def test_a_small_card_holds_1_7b_in_full_and_4b_with_adapters() -> None:
    small = {"name": "s", "model": "Qwen/Qwen3-1.7B"}
    shared = {"devices": 1, "max_example_tokens": 8192, "micro_batch_tokens": 8192}
    full = experiment(student=small, training=training(**shared))
    assert not fitting(full, "1x24GB").needs["training"].fits, "fp32 weights, gradients and moments are 27 GB"
    pure = experiment(student=small, training=training(**shared, precision="pure_bfloat16", optimizer="adamw8bit"))
    assert fitting(pure, "1x24GB").needs["training"].fits
    adapters = experiment(
        student={"name": "s", "model": "Qwen/Qwen3-4B"}, training=training(**shared, lora={"rank": 32})
    )
    assert fitting(adapters, "1x24GB").needs["training"].fits


def test_the_longest_examples_count_not_the_mean() -> None:
    assert Pass.largest(Training(batch_size=32, devices=8, max_example_tokens=1000)) == Pass(4, 1000, 4000)
    packed = Training(batch_size=32, layout="packed", micro_batch_tokens=2000, max_example_tokens=1000)
    assert Pass.largest(packed) == Pass(1, 2000, 2000)


def test_an_engine_by_hand() -> None:
    need = fitting(experiment(), "8xH100").needs["teachers.qwq"]
    model = known_architecture("Qwen/QwQ-32B")
    assert model is not None
    cache = 2 * 64 * 8 * 128 * 2 / 2  # keys and values, layers, heads, width, bytes; over two devices
    assert weights_and_cache(model, Engine(tensor_parallel_size=2), None) == (2 * model.parameters, cache)
    budget = 0.9 * 80 * GIB
    assert need.available == budget
    assert need.total == model.parameters + 18_432 * cache + 3 * GIB
    assert need.requests == pytest.approx((budget - model.parameters - 3 * GIB) / (18_432 * cache))
    # A student that training published in fp32 is served in fp32, unless its engine says otherwise.
    student = known_architecture("Qwen/Qwen3-14B")
    assert student is not None
    assert weights_and_cache(student, Engine(), 4.0)[0] == 4 * student.parameters
    assert weights_and_cache(student, Engine(dtype="bfloat16"), 4.0)[0] == 2 * student.parameters
    r1 = known_architecture("deepseek-ai/DeepSeek-R1")
    assert r1 is not None
    alone, divided = (weights_and_cache(r1, Engine(tensor_parallel_size=size), None)[1] for size in (1, 8))
    assert alone == divided == 61 * 576 * 2, "latent attention has one copy a device"


CASES: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "passes": ({"training": training(micro_batch_tokens=None)}, "8xH100", ["training.micro_batch_tokens=16384"]),
    "checkpointing": (
        {"training": training(gradient_checkpointing=False)}, "8xH100", ["training.gradient_checkpointing=true"],
    ),
    "more devices": ({"training": training(devices=2)}, "8xH100", ["training.devices=4"]),
    "fewer devices": ({"training": training(devices=8)}, "4xH200", ["training.devices=4"]),
    "two at once": (
        {"training": training(micro_batch_tokens=None, gradient_checkpointing=False)}, "8xH100",
        ["training.micro_batch_tokens=16384", "training.gradient_checkpointing=true"],
    ),
    "results change last": (
        {"student": {"name": "s", "model": "Qwen/Qwen3-1.7B"},
         "training": training(devices=1, max_example_tokens=8192, micro_batch_tokens=8192)},
        "1x24GB", ["training.precision=pure_bfloat16"],
    ),
    "a wider engine": (
        {"teachers": [{"name": "qwq", "model": "Qwen/QwQ-32B", "completer": "vllm", "engine": {"max_model_len": 18_432}}]},
        "8xA100-40GB", ["teachers.qwq.engine.tensor_parallel_size=2"],
    ),
    "a narrower engine": (
        {"evaluation": {**experiment().evaluation.model_dump(mode="json", exclude_none=True),
                        "engine": {"dtype": "bfloat16", "max_model_len": 18_432, "data_parallel_size": 16}}},
        "8xH100", ["evaluation.engine.data_parallel_size=8"],
    ),
    "weights of two bytes": (
        {"evaluation": {**experiment().evaluation.model_dump(mode="json", exclude_none=True),
                        "engine": {"max_model_len": 18_432}}},
        "1xL40S", ["evaluation.engine.dtype=bfloat16"],
    ),
    "a barrier": (
        {"merge": {"barrier": {"num_examples": 2}}, "student": {"name": "s", "model": "Qwen/Qwen2.5-32B"}},
        "8xH100", ["merge.barrier=null"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_smallest_change_is_the_expected_one_and_fits(name: str) -> None:
    changes, node, expected = CASES[name]
    spec = experiment(**changes)
    made = fitting(spec, node)
    (name,) = [key for key in made.needs if expected[0].startswith(key)]
    work = next(work for work in made.works if work.name == name)
    assert not made.needs[name].fits
    assert made.smallest_change(work) == expected
    left = fitting(overridden(spec, expected), node).needs.get(name)
    assert left is None or left.fits


@pytest.mark.parametrize("node", ["1xL4", "8xL40S", "2xH100", "8xA100-40GB", "1x24GB"])
@pytest.mark.parametrize("model", ["Qwen/Qwen3-14B", "Qwen/Qwen3-4B", "meta-llama/Llama-3.3-70B-Instruct"])
def test_every_suggestion_fits_when_it_is_made(model: str, node: str) -> None:
    spec = experiment(student={"name": "s", "model": model}, training=training(devices=1, gradient_checkpointing=False))
    made = fitting(spec, node)
    suggested = 0
    for work in made.works:
        if work.name in made.needs and not made.needs[work.name].fits:
            change = made.smallest_change(work)
            if change is not None:
                suggested += 1
                assert fitting(overridden(spec, change), node).needs[work.name].fits
                for one in change:
                    rest = [other for other in change if other != one]
                    assert not rest or not fitting_or_invalid(spec, rest, node, work.name), f"{one} is needless"
    # Nothing that is tried brings 70B onto one small card.
    assert (suggested > 0) == ("70B" not in model or node[0] != "1")


def fitting_or_invalid(spec: Experiment, change: list[str], node: str, name: str) -> bool:
    if OFFLOADING in change and CHECKPOINTING not in change:  # never suggested
        return False
    try:
        return fitting(overridden(spec, change), node).needs[name].fits
    except SpecError:
        return False


def test_what_nothing_makes_fit_is_said() -> None:
    spec = experiment(student={"name": "s", "model": "Qwen/Qwen2.5-72B"}, training=training(devices=1))
    (line,) = [line for line in fitting(spec, "1xL4").refusals() if line.startswith("training")]
    assert "no change that was tried makes it fit" in line and "need" in line and "GiB" in line
    moe = experiment(student={"name": "s", "model": "Qwen/Qwen3-30B-A3B"})
    assert "mixture of experts" in str(fitting(moe, "8xH100").needs["training"].refusal)
    odd = experiment(
        teachers=[{"name": "q", "model": "Qwen/Qwen2.5-7B", "completer": "vllm", "engine": {"tensor_parallel_size": 8}}]
    )
    assert "does not divide 28 heads" in str(fitting(odd, "8xH100").needs["teachers.q"].refusal)


# --- costs -----------------------------------------------------------------------------------------------------------


def test_nothing_of_the_world_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("a plan asked a server"))
    monkeypatch.setattr("mot_core.prepare.prepare", lambda *_, **__: pytest.fail("a plan drew problems"))
    plan = planned(experiment(), "8xH100")
    assert not plan.refusals and plan.seconds is not None


def test_training_by_hand() -> None:
    spec = experiment()
    plan = planned(spec, "8xH100")
    student = known_architecture("Qwen/Qwen3-14B")
    assert student is not None
    branch = next(one for one in plan.steps if one.step.kind == "branch" and one.step.spec["num_steps"] == 50)
    length = 256 + 0.6 * 16_384
    assert branch.tokens == pytest.approx(50 * 32 * length)
    # Two for forward, four for backward, two for what checkpointing computes again; and attention.
    per_token = 8 * student.parameters + 4 * attention_flops(student, length)
    assert attention_flops(student, length) == 2 * 2 * 40 * 40 * 128 * length / 2
    assert branch.flops == pytest.approx(branch.tokens * per_token)
    assert branch.seconds == pytest.approx(branch.flops / (8 * 989e12 * 0.4))
    assert branch.disk_bytes == 4 * student.parameters and branch.devices == 8
    # In fp32 the tensor cores stand idle; adapters need no gradients of frozen weights.
    full = planned(overridden(spec, ["training.precision=float32", "training.offload_activations=true"]), "8xB200")
    slow = next(one for one in full.steps if one.step.label == branch.step.label)
    assert slow.host_bytes == pytest.approx(4 * student.parameters + 8 * 39 / 40 * 40 * 4 * 16_384 * 5120, rel=0.03)
    assert slow.seconds == pytest.approx(slow.flops / (8 * 75e12 * 0.4))
    lora = planned(overridden(spec, ["training.lora={rank: 16}"]), "8xH100")
    assert next(one for one in lora.steps if one.step.label == branch.step.label).flops == pytest.approx(
        0.75 * branch.flops
    )


def test_tokens_and_money_of_an_endpoint() -> None:
    plan = planned(experiment(), "8xH100")
    r1 = next(one for one in plan.steps if one.step.label == "generate r1")
    written, read = 600 * 0.6 * 16_384, 600 * 256
    assert (r1.devices, r1.seconds, r1.flops) == (0, 0.0, 0.0)
    assert r1.tokens == pytest.approx(written + read)
    assert r1.money == pytest.approx((read * 1.0 + written * 3.0) / 1e6)
    rows = {row["stage"]: row for row in plan.by_stage()}
    assert rows["generation"]["money"] == r1.money and rows["training"]["money"] is None


def test_unknown_numbers_of_problems_are_said() -> None:
    spec = experiment(problems={"hub": "own/problems"})
    notes = "\n".join(planned(spec, "8xH100").notes)
    assert "problems of aime, test: all rows of their source, how many is not known here; 1,000 assumed" in notes
    assert "Qwen/QwQ-32B: 32.76 B parameters, from table of known models" in notes
    known = experiment(
        evaluation={**experiment().evaluation.model_dump(mode="json", exclude_none=True),
                    "benchmarks": [{"name": "aime", "hub": "math-ai/aime25", "k": 4}]}
    )  # fmt: skip
    assert "at most the 30 rows of math-ai/aime25" in "\n".join(planned(known, "8xH100").notes)


def test_branches_run_side_by_side_where_devices_allow() -> None:
    teachers = [
        {
            "name": name,
            "model": "x/rows",
            "completer": "corpus",
            "rationales": {"hub": "own/rows", "format": "openmathreasoning"},
        }
        for name in "abcd"
    ]
    small = {"name": "s", "model": "Qwen/Qwen3-1.7B"}
    changes: dict[str, Any] = {"teachers": teachers, "student": small, "methods": [{"name": "mot"}], "rounds": 1}
    spec = experiment(**changes, training=training(devices=2, max_example_tokens=4096, micro_batch_tokens=4096))

    def times(node: str) -> list[tuple[float, float]]:
        plan = planned(spec, node)
        assert plan.intervals is not None
        return sorted(time for time, one in zip(plan.intervals, plan.steps, strict=True) if one.step.kind == "branch")

    at_once = times("8xH100")
    assert len(at_once) == 4 and len({start for start, _ in at_once}) == 1
    in_turn = times("2xH100")
    assert [start for start, _ in in_turn[1:]] == [end for _, end in in_turn[:-1]]
    pairs = times("5xH100")
    assert pairs[0][0] == pairs[1][0] < pairs[2][0] == pairs[3][0]
    row = {row["stage"]: row for row in planned(spec, "8xH100").by_stage()}["training"]
    assert row["gpu_seconds"] == pytest.approx(8 * row["seconds"])


def test_a_memory_alone_has_no_hours() -> None:
    spec = experiment(student={"name": "s", "model": "Qwen/Qwen3-0.6B"}, teachers=experiment().model_dump(mode="json")["teachers"][1:],
                      training=training(devices=1, max_example_tokens=2048, micro_batch_tokens=2048))  # fmt: skip
    plan = planned(spec, "1x80GB")
    assert plan.seconds is None and not plan.refusals
    assert all(row["seconds"] is None and row["gpu_seconds"] is None for row in plan.by_stage())


def test_an_unknown_model_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ModelError, match="student: nothing is known of model 'own/er'.*give a directory"):
        planned(experiment(student={"name": "s", "model": "own/er"}), "8xH100")


def test_rates_are_flops_so_that_models_of_any_size_may_share_a_store(pico_spec: Experiment) -> None:
    world = resolve(pico_spec)
    teacher = world.models[pico_spec.teachers[0].name]

    def record(kind: str, counts: dict[str, Any], spec: dict[str, Any], *parents: list[str]) -> Manifest:
        return Manifest(kind, kind, 1, kind, spec, list(parents), {}, counts, {}, {}, started=0.0, ended=2.0)

    asked = {"num_asked": 10, "num_requests": 10, "num_tokens": 760}  # and 24 tokens a prompt
    small = ModelSize.of(teacher.locator).parameters
    completions = record("completions", asked, {"teacher": {"model": teacher.identity}})
    assert Costs(pico_spec, world, [completions]).inference_rate == 2 * small * 1000 / 2
    branch = record("branch", {"num_parameters": 10**9, "tokens_per_second": 5.0}, {})
    merge = record("merge", {}, {}, ["student", "elsewhere"], ["branch/ann", "branch"])
    evaluation = record("evaluation", asked, {}, ["problems", "p"], ["student", "merge"])
    costs = Costs(pico_spec, world, [branch, merge, evaluation])
    assert (costs.inference_rate, costs.training_rate) == (2e9 * 1000 / 2, 6e9 * 5)
    assert Costs(pico_spec, world, [evaluation]).inference_rate is None, "of a student that is not there"


def test_without_a_node_hub_models_count_and_servers_do_not() -> None:
    spec = experiment()
    world = imagined_world(spec)
    _, steps = outline_of(spec, world)
    assert ModelSize.of("own/er") == ModelSize(0, 0, 0, {})
    mixture = ModelSize.of("Qwen/Qwen3-30B-A3B")
    assert (mixture.parameters / 1e9, mixture.active / 1e9) == (
        pytest.approx(30.5, abs=0.1),
        pytest.approx(3.34, abs=0.05),
    )
    by_label = {one.step.label: one for one in plan_here(spec, world, steps, None, 2).steps}
    qwq, r1 = by_label["generate qwq"], by_label["generate r1"]
    assert qwq.flops > 2 * 32.7e9 * qwq.tokens and qwq.memory_bytes > 4 * 32.7e9
    assert (r1.flops, r1.memory_bytes) == (0.0, 0) and r1.tokens == qwq.tokens


# --- the command -----------------------------------------------------------------------------------------------------


def mot(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from flows.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_the_command_refuses_with_a_change_that_makes_it_pass(tmp_path: Path) -> None:
    asked = ["plan", "single-gpu-24gb:qwen3-1.7b-full", "--node", "1x24GB"]
    wrong = ["--set", "training.gradient_checkpointing=false"]
    done = mot(*asked, *wrong, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert "does not fit 1x24GB" in done.stderr and "training qwen3-1.7b" in done.stderr and "--force" in done.stderr
    (suggested,) = re.findall(r"the smallest change that fits: (.*)", done.stderr)
    assert suggested == "--set training.gradient_checkpointing=true"
    mended = mot(*asked, *wrong, *suggested.split(), cwd=tmp_path)
    assert mended.returncode == 0, mended.stderr
    assert (
        "DOES NOT FIT" not in mended.stdout and "unknown" in mended.stdout and "Assumed, not measured" in mended.stdout
    )
    forced = mot(*asked, *wrong, "--force", cwd=tmp_path)
    assert forced.returncode == 0 and "DOES NOT FIT" in forced.stdout and "by stage" in forced.stdout
    assert list(tmp_path.iterdir()) == [], "a plan writes nothing"


@pytest.mark.parametrize("preset", [name for name in preset_names() if name.startswith(("paper", "single"))])
def test_shipped_presets_fit_the_machine_they_are_for(preset: str) -> None:
    node = "1x24GB" if preset.endswith("24gb") else "8xH100"
    for spec in load_specs(preset):
        assert planned(spec, node).refusals == []
