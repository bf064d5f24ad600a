"""What streaming keeps to: memory, shards, tied heads, types, and failures that leave nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mot_core.errors import MergeError
from mot_core.merging.plan import inspect
from mot_core.merging.stage import MergeSettings, merge_models
from mot_core.merging.tensors import Output, ShardWriter
from tests.merging.models import KEY, load_all, merged, write

ROOT = Path(__file__).resolve().parents[2]
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (rule, name) for rule in ("mean", "ties", "slerp", "tests.merging.test_rules:scaled") for name in ("start", "eve")
        if (rule, name) != ("mean", "start")  # which a mean does not read
    ],
)  # fmt: skip
def test_a_bad_value_deep_inside_aborts_with_its_key(tmp_path: Path, rule: str, name: str, bad: float) -> None:
    models = {one: torch.ones(1, 300_000) * place for place, one in enumerate(("start", "ann", "eve"))}
    models[name] = models[name].clone()
    models[name][0, 299_999] = bad
    with pytest.raises(MergeError, match=rf"branch '{name}': {KEY} holds NaN or infinity; .*nothing was merged"):
        merged(tmp_path, models, rule, [0.5, 0.5])
    assert list((tmp_path / "out").iterdir()) == []


def test_large_finite_values_are_no_infinity(tmp_path: Path) -> None:
    models = {name: torch.full((1, 8), 3e38) for name in ("ann", "eve")}
    found, _ = merged(tmp_path, models, "mean", [0.5, 0.5], start=None)
    assert torch.equal(found[KEY], models["ann"])


def test_files_are_laid_out_as_save_file_does(tmp_path: Path) -> None:
    tensors = {
        "b.weight": torch.randn(3, 5), "a.weight": torch.randn(2).bfloat16(), "é.weight": torch.randn(4).bfloat16(),
        "empty.weight": torch.empty(0, 3),
    }  # fmt: skip
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    kinds = {torch.float32: "F32", torch.bfloat16: "BF16"}
    outputs = [Output(key, kinds[value.dtype], tuple(value.shape)) for key, value in tensors.items()]
    with ShardWriter(tmp_path, "ours", outputs, 1 << 30, {"format": "pt"}) as writer:
        for key, value in tensors.items():
            flat = value.reshape(-1)
            writer.write(key, len(flat) // 2, flat[len(flat) // 2 :])
            writer.write(key, 0, flat[: len(flat) // 2])
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_shards_and_their_index(tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        write(tmp_path / name, {f"t{n}.weight": torch.full((100,), float(n)) for n in range(5)})
    (tmp_path / "out").mkdir()
    branches = [inspect(name, tmp_path / name) for name in ("ann", "bob")]
    merge_models(None, branches, [0.5, 0.5], "mean", tmp_path / "out", settings=MergeSettings(max_shard_bytes=800))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2000}
    assert index["weight_map"] == {
        f"t{n}.weight": f"model-0000{1 + n // 2}-of-00003.safetensors" for n in range(5)
    }  # fmt: skip
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert {key: float(value[0]) for key, value in load_all(tmp_path / "out").items()} == {
        f"t{n}.weight": float(n) for n in range(5)
    }  # fmt: skip
    again = inspect("again", tmp_path / "out")
    assert again.shapes == branches[0].shapes


def tied(directory: Path, embed: torch.Tensor, head: torch.Tensor | None) -> Path:
    tensors = {EMBED: embed} if head is None else {EMBED: embed, HEAD: head}
    return write(directory, tensors, tie_word_embeddings=True)


def test_a_tied_head_is_written_once(tmp_path: Path) -> None:
    tied(tmp_path / "start", torch.zeros(2, 2), None)
    tied(tmp_path / "ann", torch.ones(2, 2), torch.ones(2, 2))
    tied(tmp_path / "bob", 3 * torch.ones(2, 2), None)
    (tmp_path / "out").mkdir()
    branches = [inspect(name, tmp_path / name) for name in ("ann", "bob")]
    merge_models(inspect("start", tmp_path / "start"), branches, [0.5, 0.5], "mean", tmp_path / "out")
    assert {key: value.tolist() for key, value in load_all(tmp_path / "out").items()} == {
        EMBED: [[2.0, 2.0], [2.0, 2.0]]
    }


def test_a_tied_head_that_has_drifted_is_refused(tmp_path: Path) -> None:
    tied(tmp_path / "ann", torch.ones(2, 2), 2 * torch.ones(2, 2))
    tied(tmp_path / "bob", torch.ones(2, 2), None)
    (tmp_path / "out").mkdir()
    branches = [inspect(name, tmp_path / name) for name in ("ann", "bob")]
    with pytest.raises(
        MergeError, match=rf"branch 'ann': its config ties the head to {EMBED}, but the file's head differs"
    ):
        merge_models(None, branches, [0.5, 0.5], "mean", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_untied_head_is_merged(tmp_path: Path) -> None:
    for name, value in (("ann", 1.0), ("bob", 3.0)):
        write(tmp_path / name, {EMBED: torch.zeros(2, 2), HEAD: value * torch.ones(2, 2)}, tie_word_embeddings=False)
    (tmp_path / "out").mkdir()
    merge_models(None, [inspect(n, tmp_path / n) for n in ("ann", "bob")], [0.5, 0.5], "mean", tmp_path / "out")
    assert load_all(tmp_path / "out")[HEAD].tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_integers_are_carried_over_if_they_agree(tmp_path: Path) -> None:
    for name, mark in (("ann", 5), ("bob", 5), ("eve", 6)):
        write(tmp_path / name, {KEY: torch.ones(1, 2), "model.steps": torch.tensor([mark])})
    (tmp_path / "out").mkdir()
    branches = {name: inspect(name, tmp_path / name) for name in ("ann", "bob", "eve")}
    merge_models(None, [branches["ann"], branches["bob"]], [0.5, 0.5], "mean", tmp_path / "out")
    assert load_all(tmp_path / "out")["model.steps"].tolist() == [5]
    with pytest.raises(MergeError, match="branch 'eve': model.steps is of type I64 and differs from branch 'ann''s"):
        merge_models(None, [branches["ann"], branches["eve"]], [0.5, 0.5], "mean", tmp_path / "out")


def test_two_types_are_refused_unless_the_output_has_one(tmp_path: Path) -> None:
    models = {"ann": torch.ones(1, 2), "bob": 2 * torch.ones(1, 2, dtype=torch.bfloat16)}
    with pytest.raises(MergeError, match=rf"branch 'bob': {KEY} is of type BF16, branch 'ann' has F32; save both"):
        merged(tmp_path, models, "mean", [0.5, 0.5], start=None)
    found, _ = merged(tmp_path, models, "mean", [0.5, 0.5], start=None, out="2", dtype="float16")
    assert found[KEY].dtype == torch.float16 and found[KEY].tolist() == [[1.5, 1.5]]


def test_a_start_may_have_another_type_than_its_branches(tmp_path: Path) -> None:
    models = {"start": torch.zeros(1, 2).bfloat16(), "ann": torch.ones(1, 2), "bob": 2 * torch.ones(1, 2)}
    found, _ = merged(tmp_path, models, "ties", [0.5, 0.5], parameters={"density": 1.0})
    assert found[KEY].dtype == torch.float32 and found[KEY].tolist() == [[1.5, 1.5]]


def test_a_truncated_file_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "ann", {KEY: torch.ones(1, 100)})
    path = tmp_path / "ann" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(
        MergeError, match=r"branch 'ann': .*model\.safetensors cannot be read as safetensors: .*cut short\?"
    ):
        inspect("ann", tmp_path / "ann")


def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "ann", {KEY: torch.ones(1, 2)})
    (tmp_path / "ann" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {KEY: "../bob/x.safetensors"}})
    )
    with pytest.raises(
        MergeError, match=r"branch 'ann': its index names '\.\./bob/x\.safetensors'; expected a file beside it"
    ):
        inspect("ann", tmp_path / "ann")


def test_quantized_types_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "ann", {KEY: torch.ones(1, 2).to(torch.float8_e4m3fn)})
    with pytest.raises(
        MergeError, match=rf"branch 'ann': {KEY} is of type F8_E4M3; .* merge models before they are quantized"
    ):
        inspect("ann", tmp_path / "ann")


def test_the_state_of_a_rule_lies_in_a_folder_of_its_own(tmp_path: Path) -> None:
    models = {"start": torch.zeros(1, 2), "ann": torch.ones(1, 2), "bob": torch.ones(1, 2)}
    merged(tmp_path, models, "outer", [0.5, 0.5])
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]
    state = tmp_path / "out" / "rule_state" / "state.safetensors"
    assert load_file(state)[KEY].tolist() == [[1.0, 1.0]]
    with safe_open(state, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "rule": "outer", "merges": "1"}


MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from mot_core.merging.plan import inspect
from mot_core.merging.stage import MergeSettings, merge_models
from tests.processes import status_bytes

root, out, rule, parameters = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], eval(sys.argv[4])
(out / "warm").mkdir(), (out / "large").mkdir()
names = ["b0", "b1", "b2", "b3"]
small = [inspect(name, root / "small" / name) for name in ["start", *names]]
settings = MergeSettings(parameters, threads=2)
merge_models(small[0], small[1:], [0.25] * 4, rule, out / "warm", settings=settings)
large = [inspect(name, root / "large" / name) for name in ["start", *names]]
before, peak, done = status_bytes("RssAnon"), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, status_bytes("RssAnon"))
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
merge_models(large[0], large[1:], [0.25] * 4, rule, out / "large", settings=settings)
done = True
watcher.join()
print(peak - before)
"""


# Three tensors of 32 MB in float32: all K models would be 384 MB, and a rule that sorts copies more.
LARGEST, NUM_TENSORS = 8_000_000, 3


@pytest.fixture(scope="module")
def large_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("memory")
    noise = torch.randn(LARGEST + 1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    for scale, size, count in (("small", 300_000, 1), ("large", LARGEST, NUM_TENSORS)):
        for place, name in enumerate(("start", "b0", "b1", "b2", "b3")):
            rolled = [noise[100 * place + n : 100 * place + n + size].reshape(2, -1) for n in range(count)]
            write(root / scale / name, {f"t{n}.weight": values.clone() for n, values in enumerate(rolled)})
    return root


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts anonymous memory as Linux does")
@pytest.mark.parametrize(
    ("rule", "parameters"), [("mean", {}), ("ties", {"density": 0.5}), ("dare_ties", {}), ("slerp", {}), ("outer", {})]
)
def test_resident_memory_is_bounded_by_the_largest_tensor(
    large_models: Path, tmp_path: Path, rule: str, parameters: dict[str, float]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(large_models), str(tmp_path), rule, repr(parameters)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "2"}, check=True, timeout=300,
    )  # fmt: skip
    # Less than (K + 2) × the largest tensor in float32, without the shard that a writer might hold.
    assert int(done.stdout) <= (4 + 2) * 4 * LARGEST
