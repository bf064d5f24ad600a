"""The cards: they load, they say what was done, they name a missing licence, and text of others does nothing in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mot_core.corpus.card import student_card
from mot_core.corpus.licenses import Origin, license_fields, shown
from mot_core.corpus.tables import COLUMNS
from tests.corpus.graded import Built, rows

RIGHT = {"p0": "ci", "p1": "cc"}
HOSTILE = 'mit\n---\n# <script>alert(1)</script> | x](http://e.vil) `*_ "\u202e\x00'


def front(card: str) -> tuple[dict[str, Any], str]:
    """A card's YAML head, and its body."""
    opening, head, body = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(head), body


def built(tmp_path: Path, **changes: Any) -> Built:
    return Built(tmp_path, {"ann": rows("ann", RIGHT), "bob.2": rows("bob.2", RIGHT)}, **changes)


@pytest.mark.filterwarnings("ignore")
def test_datasets_loads_each_configuration_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import get_dataset_config_names, load_dataset

    made = built(tmp_path)
    assert get_dataset_config_names(str(made.path)) == ["ann", "bob.2"]
    data = load_dataset(str(made.path), "bob.2", split="train", cache_dir=str(tmp_path / "cache"))
    assert data.column_names == list(COLUMNS) and data["completion_key"] == ["bob.2-p0-0", "bob.2-p1-0"]
    assert data[0]["messages"][1] == {"role": "assistant", "content": "\\boxed{p0}", "reasoning_content": "bob.2 0"}
    assert data.features["student_tokens"].dtype == "int64" and data.features["teacher_license"].dtype == "string"


def test_the_corpus_card_says_what_was_done(tmp_path: Path) -> None:
    made = built(tmp_path, licenses={"ann": "mit", "bob.2": "MIT"}, problems_license="mit", num_rationales=7)
    fields, body = front((made.path / "README.md").read_text(encoding="utf-8"))
    assert fields == {
        "license": "mit", "pretty_name": "matched corpora of 2 teachers", "task_categories": ["text-generation"],
        "tags": ["reasoning", "chain-of-thought", "distillation", "merge-of-thought"],
        "configs": [
            {"config_name": name, "data_files": [{"split": "train", "path": f"{name}.parquet"}]} for name in ("ann", "bob.2")
        ],
    }  # fmt: skip
    assert "those that all of ann, bob.2 answered correctly" in body
    assert "| rationales | at most 7 a teacher, 1 a problem |" in body
    assert "| ann | 2 | 2 | 40 | 4 |" in body
    assert "| limit of 7 | 0 | 2 |" in body and "| ann has a correct rationale | 0 | 2 |" in body
    assert "| ann | correct | 1 |" in body and "| ann | choice | 1 |" in body
    assert "| teacher | ann | mit |" in body and "missing" not in body
    assert all(f"| `{name}` |" in body for name in COLUMNS)


def test_the_card_says_whose_wrong_rationales_are_kept(tmp_path: Path) -> None:
    told = {
        "left out": {}, "left out, but kept of bob.2": {"match_over": ("ann",)}, "kept": {"filter_correct": False},
    }  # fmt: skip
    for words, settings in told.items():
        card = (built(tmp_path, **settings).path / "README.md").read_text(encoding="utf-8")
        assert f"| wrong rationales | {words} |" in card


def test_a_missing_licence_is_named(tmp_path: Path) -> None:
    made = built(tmp_path, licenses={"ann": "mit"})
    fields, body = front((made.path / "README.md").read_text(encoding="utf-8"))
    assert fields["license"] == "unknown"
    assert "| teacher | bob.2 | **missing** |" in body
    assert "Not stated: teacher bob.2, problems the questions and reference answers." in body


def test_two_buildings_are_byte_identical(tmp_path: Path) -> None:
    one, other = built(tmp_path, choice="random"), built(tmp_path, choice="random")
    assert {path.name: path.read_bytes() for path in one.path.iterdir()} == {
        path.name: path.read_bytes() for path in other.path.iterdir()
    }
    assert str(tmp_path) not in (one.path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("licenses", "fields"),
    [
        (["mit", "MIT "], {"license": "mit"}),
        (["mit", "Apache-2.0"], {"license": "other", "license_name": "apache-2.0-and-mit"}),
        (["Qwen Research"], {"license": "other", "license_name": "qwen-research"}),
        (["許可"], {"license": "other", "license_name": "see-below"}),
        (["mit", None], {"license": "unknown"}),
        (["mit", " \n"], {"license": "unknown"}),
        ([], {"license": "unknown"}),
    ],
)
def test_the_one_licence_of_several(licenses: list[str | None], fields: dict[str, str]) -> None:
    assert license_fields([Origin("teacher", f"t{n}", one) for n, one in enumerate(licenses)]) == fields


def test_text_of_others_does_nothing_in_a_card(tmp_path: Path) -> None:
    made = built(tmp_path, licenses={"ann": HOSTILE, "bob.2": HOSTILE}, problems_license=HOSTILE)
    card = (made.path / "README.md").read_text(encoding="utf-8")
    fields, body = front(card)
    assert fields["license"] == "other" and set(fields["license_name"]) <= set(
        "abcdefghijklmnopqrstuvwxyz0123456789.+-"
    )
    assert "<script" not in body and "\u202e" not in body and "\x00" not in body and "](http" not in body
    [line] = [line for line in body.splitlines() if line.startswith("| teacher | ann |")]
    assert line == f"| teacher | ann | {shown(HOSTILE)} |"
    assert shown("a|b_c\n# d <e>") == "a\\|b\\_c \\# d &lt;e&gt;"


def test_the_students_card() -> None:
    origins = [
        Origin("start", "Qwen/Qwen3-8B", "apache-2.0"), Origin("teacher", "qwq", "apache-2.0"),
        Origin("teacher", HOSTILE, None), Origin("problems", "boba", None),
    ]  # fmt: skip
    card = student_card(
        name="student | round 5", start="Qwen/Qwen3-8B", base_model="Qwen/Qwen3-8B", rule="mean", weights={"qwq": 0.5, HOSTILE: 0.5},
        origins=origins, datasets=["inclusionAI/AReaL-boba-Data"], results=[["aime|24", 16, "0.512", 30]],
    )  # fmt: skip
    fields, body = front(card)
    assert fields == {
        "license": "unknown", "base_model": "Qwen/Qwen3-8B", "base_model_relation": "merge",
        "datasets": ["inclusionAI/AReaL-boba-Data"], "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["merge", "reasoning", "chain-of-thought", "distillation", "merge-of-thought"],
    }  # fmt: skip
    assert body.startswith("\n# student \\| round 5\n")
    assert "| qwq | 0.5 |" in body and "| start | Qwen/Qwen3\\-8B | apache\\-2.0 |" in body
    assert "| aime\\|24 | 16 | 0.512 | 30 |" in body
    assert "| problems | boba | **missing** |" in body and "<script" not in card and "\n---\n# " not in body
    [named] = [line for line in body.splitlines() if line.startswith("Not stated: ")]
    assert named.startswith("Not stated: teacher mit") and "problems boba." in named
