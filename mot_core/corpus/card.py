"""The cards (README.md) of corpora and of students, in the Hugging Face Hub's form.

Invariant: a card follows from its arguments alone, without a date, a path or a machine; what it does not know it names
as missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mot_core.corpus.ledger import Ledger
from mot_core.corpus.licenses import Origin, clean, front_matter, license_fields, license_section, shown, table
from mot_core.corpus.tables import COLUMNS
from mot_core.spec import Corpus

CARD, LICENSES = "README.md", "LICENSE.md"
_MODES = {
    "matched": "the same problems for every teacher: those that all of {matching} {solved}",
    "per_teacher": "for each teacher the problems that it {solved} itself",
    "union": "the problems that any of {matching} {solved}; each teacher brings what it has of them",
    "size_matched": "for each teacher the problems that it {solved} itself, cut at random to the smallest corpus",
}
_CHOICES = {
    "first": "the first",
    "shortest": "the shortest",
    "longest": "the longest",
    "random": "random ones",
    "likeliest": "those of highest mean log-probability under the untrained student",
}
_TAGS = ["reasoning", "chain-of-thought", "distillation", "merge-of-thought"]


@dataclass(frozen=True)
class Contents:
    """How large one teacher's corpus is."""

    num_rationales: int
    num_problems: int
    num_tokens: int | None
    num_drawn: int


def corpus_card(
    corpus: Corpus, matching: Sequence[str], contents: Mapping[str, Contents], ledger: Ledger, origins: Sequence[Origin]
) -> str:
    """The data card of a directory of corpora: one configuration a teacher."""
    fields = {
        **license_fields(origins),
        "pretty_name": f"{corpus.mode} corpora of {len(contents)} teachers",
        "task_categories": ["text-generation"],
        "tags": _TAGS,
        "configs": [
            {"config_name": teacher, "data_files": [{"split": "train", "path": f"{teacher}.parquet"}]}
            for teacher in contents
        ],
    }
    first = next(iter(contents))
    parts = [
        f"# Rationales of {len(contents)} teachers ({shown(corpus.mode)})",
        "Graded rationales, one configuration a teacher, in `messages` form, for fine-tuning a student. The text is "
        "model output and may be wrong.",
        f'```python\nfrom datasets import load_dataset\n\nload_dataset("path/to/this/directory", "{first}", split="train")\n```',
        "## How they were chosen",
        _settings_table(corpus, matching, [teacher for teacher in contents if teacher not in matching]),
        "## How many",
        _contents_table(contents),
        "Problems left after each filter, in order:",
        table(["filter", "dropped", "left"], [[shown(e.filter), e.num_dropped, e.num_left] for e in ledger.entries]),
        "What is in no corpus, by the filter at which it fell; `rejections.jsonl` lists each with its reason:",
        _rejections_table(ledger),
        "## Columns",
        table(["column", "meaning"], [[f"`{name}`", meaning] for name, meaning in COLUMNS.items()]),
        "## Licences",
        license_section("these corpora", origins),
    ]
    return front_matter(fields) + "\n" + "\n\n".join(parts) + "\n"


def student_card(
    *, name: str, start: str, base_model: str | None, rule: str, weights: Mapping[str, float], origins: Sequence[Origin],
    datasets: Sequence[str] = (), results: Sequence[Sequence[object]] = (),
) -> str:  # fmt: skip
    """The model card of a student.

    `start` names what it started from; `base_model` is that one's hub id, absent where it has none, since the hub resolves
    it; `weights` are those of the last merge by branch, empty for a student of one branch; `origins` are all that the
    student was made from (the start, the teachers, the problems); `datasets` are hub ids; `results` are rows of benchmark,
    k, avg@k and number of problems.
    """
    licence = license_fields(origins)
    fields = {
        **licence,
        **({"license_link": LICENSES} if "license_name" in licence else {}),
        **({"base_model": clean(base_model)} if base_model is not None else {}),
        **({"base_model_relation": "merge" if weights else "finetune"} if base_model is not None else {}),
        **({"datasets": [clean(dataset) for dataset in datasets]} if datasets else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", *_TAGS] if weights else _TAGS,
    }
    merged = [
        f"A student distilled from {len(weights)} branches by Merge-of-Thought (arXiv 2509.08814) or a variant of it: "
        "branches are fine-tuned on teachers' rationales, and their weights are merged into the next start.",
        f"The start was {shown(start)}. The last merge used the rule {shown(rule)}:",
        table(["branch", "weight"], [[shown(branch), f"{weight:.6g}"] for branch, weight in weights.items()]),
    ]
    trained = [f"A student fine-tuned on teachers' rationales. The start was {shown(start)}; nothing was merged."]
    parts = [
        f"# {shown(name)}",
        *(merged if weights else trained),
        "Its training text is model output, kept where its final answer was graded as the corpora's card says; the "
        "student may state wrong answers with confidence.",
        *(
            [
                "## Results",
                table(
                    ["benchmark, test", "k", "avg@k", "problems"],
                    [[shown(str(cell)) for cell in row] for row in results],
                ),
            ]
            if results
            else []
        ),
        "## Licences",
        license_section("this model", origins),
    ]
    return front_matter(fields) + "\n" + "\n\n".join(parts) + "\n"


def _settings_table(corpus: Corpus, matching: Sequence[str], others: Sequence[str]) -> str:
    solved = "answered correctly" if corpus.filter_correct else "answered, rightly or not,"
    rows: list[list[object]] = [
        [
            "mode",
            f"{shown(corpus.mode)}: " + _MODES[corpus.mode].format(matching=shown(", ".join(matching)), solved=solved),
        ],
        ["rationales", f"at most {corpus.num_rationales} a teacher, {corpus.rationales_per_problem} a problem"],
        ["choice among a problem's", _CHOICES[corpus.choice]],
        ["wrong rationales", _wrong_ones(corpus, others)],
        ["selection seed", corpus.selection_seed],
    ]
    if corpus.difficulty is not None:
        low, high = corpus.difficulty
        rows.append(["pass rate of the untrained student", f"{low:g} to {high:g}"])
    if corpus.max_rationale_tokens is not None:
        rows.append(["longest rationale", f"{corpus.max_rationale_tokens} of the student's tokens"])
    return table(["setting", "value"], rows)


def _wrong_ones(corpus: Corpus, others: Sequence[str]) -> str:
    if not corpus.filter_correct:
        return "kept"
    return f"left out, but kept of {shown(', '.join(others))}" if others else "left out"


def _contents_table(contents: Mapping[str, Contents]) -> str:
    rows = [
        [shown(teacher), one.num_rationales, one.num_problems, "" if one.num_tokens is None else one.num_tokens, one.num_drawn]
        for teacher, one in contents.items()
    ]  # fmt: skip
    return table(["teacher", "rationales", "problems", "tokens", "rationales drawn"], rows)


def _rejections_table(ledger: Ledger) -> str:
    rows = [
        [shown(teacher) or "(problems)", shown(name), number] for (teacher, name), number in ledger.counts().items()
    ]
    return table(["teacher", "filter", "number"], rows) if rows else "Nothing was left out."
