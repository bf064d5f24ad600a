"""The tables of one run: what the report draws, what the tracker logs, what a notebook loads.

Everything here is derived from published steps and the run's index, so it can be made again at any time.
Invariant: a table has its columns even when it is empty. What a published step does not say, being older than the
measure or made without it, is absent there, never zero.

Column vocabulary. `method` is one of `base`, `std/<teacher>`, `mtd`, `merge_once`, `mot`, `ensemble`,
`shuffled` (or a user's own). `budget` is `matched_path` or `matched_compute` (`base` appears under each
budget that was run). `seed` is the training seed (`base` has one row a seed, all equal). `round` counts
merges from 1, and 0 is the untrained student; a path without rounds counts the round boundary that it
passed (after r × steps_per_round steps), so curves share an axis. Inside a round, where `evaluation.path.every_steps`
asks for it, `round` is steps / steps_per_round, no whole number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

TABLE_COLUMNS: dict[str, tuple[str, ...]] = {
    # One row per evaluated student and benchmark. `is_final` marks the student that the stopping rule chose.
    # `split` is 'test' or 'dev'; `role` is 'home' or 'panel'. Shares are in [0, 1]. `se_problems` is the standard error
    # of avg_at_k over problems. What lm-evaluation-harness measured (docs/harness.md) has `benchmark` name/task, k = 1, its
    # own metric and its standard error, and no more; there only metrics that are shares have rows.
    "scores": (
        "budget",
        "method",
        "teacher",
        "seed",
        "round",
        "is_final",
        "benchmark",
        "split",
        "role",
        "k",
        "num_problems",
        "avg_at_k",
        "se_problems",
        "pass_at_k",
        "maj_at_k",
        "mean_completion_tokens",
        "truncated_share",
        "unparseable_share",
        "failed_share",
        "path_steps",
        "identity",
    ),
    # One row per evaluated student, benchmark and problem: the unit of every paired test. Of the harness, one per document
    # where the metric says right or wrong (`problem_id` is task/document, `majority_correct` is absent).
    "problem_scores": (
        "budget",
        "method",
        "seed",
        "round",
        "is_final",
        "benchmark",
        "split",
        "problem_id",
        "num_correct",
        "num_samples",
        "majority_correct",
    ),
    # Final students on the test split, seeds pooled by problem. delta = a − b in avg@k; 95 % interval. `test` says what
    # the p-value is from: 'permutation', or 'mcnemar' (exact). `sd` is the deviation of the differences by problem, each
    # over `num_samples` samples, and `sampling_share` what part of its square is noise of the samples (absent where one
    # sample does not show it). `detectable` is the difference that is found with a power of 80 %, `problems_needed` the
    # number of problems for one of 3 points; both are absent where all problems differ alike.
    "comparisons": (
        "budget",
        "a",
        "b",
        "benchmark",
        "delta",
        "ci_low",
        "ci_high",
        "p_value",
        "p_value_holm",
        "test",
        "num_problems",
        "num_seeds",
        "num_samples",
        "sd",
        "sampling_share",
        "detectable",
        "problems_needed",
    ),
    # Teacher × problem: how often a teacher was right, and whether the problem entered the matched corpora.
    "coverage": ("teacher", "family", "problem_id", "num_samples", "num_correct", "selected"),
    # One row per rationale drawn from a teacher. verdict: correct, incorrect, unparseable, truncated, …
    "rationales": ("teacher", "problem_id", "family", "completion_tokens", "verdict", "selected"),
    # What was lost between drawn rationales and corpus, in order: filter name, number dropped, number left.
    "corpus_ledger": ("filter", "num_dropped", "num_left"),
    # Every rationale and problem that is in no corpus, counted by teacher (empty: all teachers) and filter.
    "rejections": ("teacher", "filter", "num_rejected"),
    # One row per teacher. `num_asked` is what this store had to ask for; `cost` is in the currency of the spec's
    # prices, absent without them; `judge_disagreement` is the share of judged verdicts that a second opinion denies.
    "teachers": (
        "teacher",
        "num_requests",
        "num_asked",
        "num_failed",
        "num_absent",
        "prompt_tokens",
        "completion_tokens",
        "cost",
        "correct",
        "incorrect",
        "unparseable",
        "truncated",
        "grader_failed",
        "judge_disagreement",
    ),
    # Totals per method (sum over its own path; teachers' tokens are those of the corpora that it trains on, and those that
    # teachers read of what an on-policy student sampled, whose sampling and reading are in training_flops).
    "cost": (
        "budget",
        "method",
        "seed",
        "teacher_tokens",
        "training_tokens",
        "training_flops",
        "branch_steps",
        "path_steps",
        "inference_tokens_per_problem",
        "num_students_at_inference",
    ),
    # Loss on completion tokens (nats) at each optimizer step of a branch. `held_out_loss`, at the steps after which an
    # early stop looked: the same loss on examples of the branch's corpus that it is not trained on.
    "training": ("budget", "method", "seed", "round", "branch", "step", "loss", "held_out_loss", "grad_norm", "tokens"),
    # One row per branch of a final student's path; equal identities are one training under several methods or budgets.
    # `num_planned_steps` is what was asked for, `num_steps` what was taken. With an early stop `best_step` is the step
    # whose weights were published, counted in the branch, and `held_out_loss` their loss. Examples over the length limit
    # were dropped or cut. `num_carried_moments` counts the branches whose optimizer moments this one began with.
    # `peak_memory_bytes` is the most that torch had allocated on one device; absent on a CPU.
    "branches": (
        "budget",
        "method",
        "seed",
        "round",
        "branch",
        "identity",
        "num_examples",
        "num_dropped_long",
        "num_cut_long",
        "num_held_out",
        "num_planned_steps",
        "num_steps",
        "best_step",
        "held_out_loss",
        "num_parameters",
        "num_trained_parameters",
        "num_carried_moments",
        "input_tokens",
        "completion_tokens",
        "tokens_per_second",
        "peak_memory_bytes",
    ),
    # One row per merge and layer group. `branch` is a branch name, or 'merged'. `drift` is the L2 norm of the
    # update from the round's start; `relative_drift` divides by the norm of the start's tensor.
    "merge_drift": ("budget", "method", "seed", "round", "branch", "layer", "kind", "drift", "relative_drift"),
    # One row per merge: mean pairwise cosine of the branches' updates, share of coordinates on which all
    # branches' updates share a sign, share of the mean update energy kept by the merge.
    "merge_agreement": (
        "budget",
        "method",
        "seed",
        "round",
        "mean_cosine",
        "min_cosine",
        "sign_agreement",
        "energy_kept",
    ),
    # One row per merge and pair of its branches, in the order of their names: the cosine of their updates.
    "merge_cosine": ("budget", "method", "seed", "round", "a", "b", "cosine"),
    # One row per merge, model and sampled matrix. `branch` as in `merge_drift`. `effective_rank` is exp of the entropy of
    # the update's normalised singular values, over `num_rows` sampled rows, so at most that.
    "merge_rank": ("budget", "method", "seed", "round", "branch", "layer", "kind", "key", "effective_rank", "num_rows"),
    # Where a barrier was asked for: one row per merge, line and point. A line goes from `from` to `to`, each 'start', a
    # branch or 'merged'; `share` in [0, 1] is the point's place on it, `loss` is on completion tokens (nats), and
    # `barrier` is how far the line's loss rises above the straight line between its ends, the same in all its rows.
    "merge_barrier": ("budget", "method", "seed", "round", "from", "to", "share", "loss", "barrier"),
    # What students and branches answered on a few test problems. `text` is untrusted model output.
    "answers": (
        "budget",
        "method",
        "seed",
        "round",
        "branch",
        "benchmark",
        "problem_id",
        "question",
        "gold",
        "text",
        "verdict",
    ),
    # One row per step of the DAG. `state` is 'run' or 'reused'. Seconds are compute, not waiting.
    "steps": ("identity", "kind", "label", "state", "seconds", "method", "seed", "round", "teacher"),
}


@dataclass(frozen=True)
class Results:
    """The tables of one run, as pandas DataFrames, with its summary, spec and provenance."""

    run_id: str
    spec: dict[str, Any]
    summary: dict[str, Any]
    provenance: dict[str, Any]
    scores: pd.DataFrame
    problem_scores: pd.DataFrame
    comparisons: pd.DataFrame
    coverage: pd.DataFrame
    rationales: pd.DataFrame
    corpus_ledger: pd.DataFrame
    rejections: pd.DataFrame
    teachers: pd.DataFrame
    cost: pd.DataFrame
    training: pd.DataFrame
    branches: pd.DataFrame
    merge_drift: pd.DataFrame
    merge_agreement: pd.DataFrame
    merge_cosine: pd.DataFrame
    merge_rank: pd.DataFrame
    merge_barrier: pd.DataFrame
    answers: pd.DataFrame
    steps: pd.DataFrame

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name, in the order of `TABLE_COLUMNS`."""
        return {name: getattr(self, name) for name in TABLE_COLUMNS}
