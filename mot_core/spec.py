"""What an experiment is: frozen, nested, complete specs, and errors that name file, field, value and remedy.

Invariant: a spec that loads is consistent in itself (names unique, weights that sum, k within the samples).
What only the world can answer (does the model exist, does its tokenizer have a template) is asked by
`mot_core.world`, also before any compute is claimed.
One file, longer than most: whoever writes a spec finds every field in it.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mot_core.identity import fingerprint

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
BudgetName = Literal["matched_path", "matched_compute"]
Scalar = bool | int | float | str
Keep = Literal["all", "merged", "last"]

BUILTIN_METHODS = ("base", "std", "mtd", "merge_once", "mot", "ensemble", "shuffled", "shrunk", "splits", "opd", "mot_opd")  # fmt: skip
TRAINED_METHODS = ("std", "mtd", "merge_once", "mot", "shuffled", "splits", "opd")


_RATE_OF = {"shrunk": "std", "mot_opd": "opd"}
"""Methods made of another one's steps, which train at its rate where they give none."""


class Spec(BaseModel):
    """Base of all specs: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Sampling(Spec):
    """How completions are drawn."""

    temperature: float = Field(0.7, ge=0.0, le=2.0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_completion_tokens: int = Field(96, ge=1, description="longer completions are cut and count as truncated")
    top_k: int | None = Field(None, ge=1, description="absent: every token is a candidate")
    min_p: float | None = Field(None, ge=0.0, le=1.0, description="relative to the likeliest token; absent: off")

    def record(self) -> dict[str, Any]:
        """What enters identity: a setting that is absent leaves no trace, so that new ones keep old identities."""
        return self.model_dump(mode="json", exclude_none=True)


class Model(Spec):
    """Weights by name: `lab:NAME` (shipped), a local directory, or a hub id with its revision."""

    name: Name
    model: str = Field(min_length=1)
    revision: str | None = Field(None, description="hub ids only: a tag or commit; absent means the hub's main")
    license: str | None = Field(None, description="an SPDX id or a name; travels to the corpus's and student's cards")


RESERVED_ENGINE_ARGS = frozenset({
    "model", "revision", "tokenizer", "skip_tokenizer_init", "trust_remote_code", "load_format", "dtype", "quantization",
    "max_model_len", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "gpu_memory_utilization",
})  # fmt: skip


class Engine(Spec):
    """How vLLM loads a model. Sizes of parallelism and memory are how, not what: they stay out of identity."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: as stored")
    quantization: str | None = Field(None, description="vLLM's name of a method, e.g. fp8 or awq")
    max_model_len: int | None = Field(None, ge=2, description="prompt and completion, tokens; absent: the model's own")
    tensor_parallel_size: int = Field(1, ge=1)
    pipeline_parallel_size: int = Field(1, ge=1)
    data_parallel_size: int = Field(1, ge=1, description="engines side by side, each with its own devices")
    gpu_memory_utilization: float = Field(0.9, gt=0.0, le=1.0, description="share of a device that an engine may take")
    engine_args: dict[str, Scalar] = Field({}, description="passed to vllm.LLM as they are")

    @model_validator(mode="after")
    def _arguments_of_its_own(self) -> Engine:
        refused = sorted(RESERVED_ENGINE_ARGS & self.engine_args.keys())
        if refused:
            raise ValueError(
                f"engine_args holds {', '.join(refused)}: a field of engine has it, or it is fixed (weights as "
                "safetensors only, no remote code, token ids in and out); take it out of engine_args"
            )
        return self

    @property
    def num_devices(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size

    def record(self) -> dict[str, Any]:
        """The fields that may change a completion, and so enter identity."""
        changing = {"dtype", "quantization", "max_model_len", "engine_args"}
        return self.model_dump(mode="json", include=changing, exclude_defaults=True)


class Endpoint(Spec):
    """An OpenAI-compatible server. Its address is a place and stays out of identity; `model` names who answers."""

    base_url: str = Field(pattern=r"^https?://[^/@\s]+(/\S*)?$", description="up to /v1, without user or key")
    api_key_env: str | None = Field(None, description="the environment variable that holds the key; absent: no key")
    max_concurrency: int = Field(32, ge=1, description="requests in flight at most; adapts below it to 429s")
    timeout_seconds: float = Field(600.0, gt=0.0, description="one attempt at one request")
    max_retries: int = Field(6, ge=0, description="of a request, with jitter; Retry-After is kept to")
    extra_body: dict[str, Any] = Field({}, description="further fields of each request, e.g. reasoning_effort")
    price_per_million_prompt_tokens: float | None = Field(None, ge=0.0)
    price_per_million_completion_tokens: float | None = Field(None, ge=0.0)
    max_total_tokens: int | None = Field(None, ge=1, description="budget of this teacher in this store, both ways")
    max_cost: float | None = Field(None, gt=0.0, description="budget in the currency of the prices")

    @model_validator(mode="after")
    def _cost_has_prices(self) -> Endpoint:
        prices = (self.price_per_million_prompt_tokens, self.price_per_million_completion_tokens)
        if self.max_cost is not None and None in prices:
            raise ValueError("max_cost needs price_per_million_prompt_tokens and price_per_million_completion_tokens")
        return self


class Table(Spec):
    """Rows that exist already: a hub data set or files (JSONL, CSV, parquet), with a mapping of columns."""

    hub: str | None = Field(None, description="a data set's hub id (owner/name)")
    revision: str | None = Field(None, description="hub only: a tag or commit")
    config: str | None = Field(None, description="hub only: the data set's configuration")
    data_files: str | None = Field(
        None,
        description="hub only: the repository's files that are read, as a pattern (data/part-0000[0-3].parquet), with "
        "the one split train; absent: its splits as its card says",
    )
    file: str | None = Field(None, description="JSONL, CSV or parquet, by suffix; may hold * for several files")
    format: str | None = Field(None, description="a named column mapping, see `mot_core.formats`")
    columns: dict[str, str] = Field({}, description="our column → theirs (dots reach into records)")
    filters: dict[str, Scalar | tuple[Scalar, ...]] = Field({}, description="their column → the value or values kept")

    @model_validator(mode="after")
    def _data_files_of_a_hub(self) -> Table:
        if self.data_files is not None and (self.hub is None or self.config is not None):
            raise ValueError("data_files names files of a hub repository: give hub with it, and no config")
        if self.data_files is not None and (self.data_files.startswith("/") or ".." in Path(self.data_files).parts):
            raise ValueError(
                f"data_files {self.data_files!r} leads out of the repository; give a pattern from its top, without '..'"
            )
        return self

    def record(self, file_identity: str | None) -> dict[str, Any]:
        """What enters identity: the file by content, the hub by name and revision."""
        fields = self.model_dump(mode="json", include=set(Table.model_fields) - {"file"}, exclude_none=True)
        kept = {name: value for name, value in fields.items() if value != {}}
        return kept if file_identity is None else {**kept, "file": file_identity}


class Rationales(Table):
    """A teacher's rationales that exist already, found by their question; columns question and rationale, or messages."""

    split: str = Field("train", description="their split, in the form of `datasets` (train, train[:10%])")

    @model_validator(mode="after")
    def _one_source(self) -> Rationales:
        if (self.hub is None) == (self.file is None):
            raise ValueError("give exactly one of hub, file")
        return self


COMPLETER_SETTINGS = {"vllm": "engine", "openai": "endpoint", "corpus": "rationales"}


class Teacher(Model):
    """One source of rationales. `sampling` and `num_samples`, where absent, are those of `generation`."""

    completer: str = Field("transformers", description="transformers, vllm, openai, corpus, or package.module:Class")
    sampling: Sampling | None = None
    num_samples: int | None = Field(None, ge=1)
    system: str | None = Field(None, description="a system message before every question")
    template_kwargs: dict[str, Scalar] = Field({}, description="arguments of the chat template, e.g. enable_thinking")
    engine: Engine | None = Field(None, description="with completer vllm; absent: its defaults")
    endpoint: Endpoint | None = Field(None, description="with completer openai: the server")
    rationales: Rationales | None = Field(None, description="with completer corpus: the rows")

    @model_validator(mode="after")
    def _name_is_free(self) -> Teacher:
        if self.name == "coverage":
            raise ValueError("a teacher cannot be called 'coverage': its corpus would take that table's file name")
        return self

    @model_validator(mode="after")
    def _settings_of_its_completer(self) -> Teacher:
        for completer, setting in COMPLETER_SETTINGS.items():
            if getattr(self, setting) is not None and self.completer != completer:
                raise ValueError(f"{setting} belongs to completer {completer!r}, but completer is {self.completer!r}")
        if self.completer == "openai" and self.endpoint is None:
            raise ValueError("completer 'openai' needs endpoint: {base_url: …}")
        if self.completer == "corpus" and self.rationales is None:
            raise ValueError("completer 'corpus' needs rationales: {hub: …} or {file: …}")
        return self

    def settings(self) -> dict[str, Any]:
        """The spec of its own completer, as JSON; empty where there is none."""
        name = COMPLETER_SETTINGS.get(self.completer)
        own: Spec | None = getattr(self, name) if name else None
        return own.model_dump(mode="json") if own is not None else {}


class Student(Model):
    """The model that is distilled into; every round starts from it or from its last merge. It is trained on bare questions,
    without a system message, and asked them so by every benchmark that gives no `prompt` and no `system`."""


Split = Literal["train", "dev", "test"]


class Gym(Spec):
    """A data set of the installed reasoning-gym. Problems are drawn with the source's `seed`, and graded by `gym`."""

    dataset: str = Field(min_length=1, description="reasoning-gym's name of it, e.g. chain_sum")
    settings: dict[str, Scalar | tuple[Scalar, ...]] = Field(
        {}, description="its own, where they differ from its defaults"
    )


class ProblemSource(Table):
    """Where problems come from: exactly one of `families`, `gym`, `file`, `hub`, `import_path`."""

    families: tuple[str, ...] | None = Field(None, description="laboratory problem families")
    gym: Gym | None = Field(None, description="a data set of reasoning-gym")
    import_path: str | None = Field(None, description="package.module:function(split, num_problems, seed)")
    num_problems: int | None = Field(None, ge=1, description="in all, shared evenly between families; absent: all rows")
    split: Split = "train"
    splits: dict[Split, str] | None = Field(
        None,
        description="our split → theirs, e.g. {dev: 'train[:10]', test: 'train[10:]'}; absent: a file's column `split`, "
        "a hub data set's split of our name. A benchmark without dev is asked of final students only",
    )
    seed: Seed = 0
    license: str | None = Field(None, description="of the problems; travels to the cards")

    @model_validator(mode="after")
    def _one_source(self) -> ProblemSource:
        sources = ("families", "gym", "file", "hub", "import_path")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(sources)}; got {given or 'none'}")
        if self.families is not None and len(set(self.families)) != len(self.families):
            raise ValueError(f"families repeats a name: {list(self.families)}")
        if self.num_problems is None and given[0] in ("families", "gym", "import_path"):
            raise ValueError(f"{given[0]} needs num_problems")
        return self


class Generation(Spec):
    """How the teachers are sampled. Training seeds do not enter: teachers are paid for once."""

    seed: Seed = 0
    num_samples: int = Field(1, ge=1, description="rationales a problem and teacher")
    sampling: Sampling = Sampling()
    batch_size: int = Field(256, ge=1, description="requests a forward pass; engines and endpoints batch by themselves")
    max_failed_share: float = Field(0.05, ge=0.0, le=1.0, description="more failed requests stop the step")

    def sampling_of(self, teacher: Teacher) -> Sampling:
        return teacher.sampling if teacher.sampling is not None else self.sampling

    def samples_of(self, teacher: Teacher) -> int:
        return teacher.num_samples if teacher.num_samples is not None else self.num_samples


class Decontamination(Spec):
    """Training problems that a benchmark of the spec holds, exactly (normalised) or by a shared n-gram of words."""

    ngram: int = Field(13, ge=2, description="words in a row that count as the same problem")
    on_hit: Literal["remove", "stop"] = "remove"


class Corpus(Spec):
    """From graded rationales to one corpus a teacher. The default is the paper's: matched, one rationale a problem."""

    mode: Literal["matched", "per_teacher", "union", "size_matched"] = Field(
        "matched",
        description="matched: problems that every teacher of match_over got right; per_teacher: each its own; union: "
        "problems that any got right, each teacher with what it has; size_matched: per_teacher, cut to the smallest",
    )
    match_over: tuple[Name, ...] | None = Field(
        None, description="whose right answers choose the problems; absent: all teachers. The others come unfiltered"
    )
    num_rationales: int = Field(200, ge=1, description="a teacher, at most")
    rationales_per_problem: int = Field(1, ge=1)
    selection_seed: Seed = 0
    choice: Literal["first", "shortest", "longest", "random", "likeliest"] = Field(
        "first", description="among a problem's correct ones; likeliest: highest mean log-probability under the student"
    )
    filter_correct: bool = Field(True, description="false keeps wrong rationales too (an ablation)")
    difficulty: tuple[float, float] | None = Field(
        None, description="keep problems whose pass rate by the untrained student lies in [low, high]"
    )
    difficulty_samples: int = Field(4, ge=1, description="samples a problem for that pass rate")
    max_rationale_tokens: int | None = Field(None, ge=1, description="in the student's tokens; longer ones are dropped")
    grader: str = Field("family", description="a registered grader, or package.module:function")
    judge: Teacher | None = Field(None, description="a second opinion on every verdict; changes none, is compared")
    decontamination: Decontamination = Decontamination()

    @model_validator(mode="after")
    def _consistent(self) -> Corpus:
        if self.rationales_per_problem > self.num_rationales:
            raise ValueError(
                f"rationales_per_problem is {self.rationales_per_problem}, more than num_rationales {self.num_rationales}"
            )
        if self.difficulty is not None and not 0.0 <= self.difficulty[0] <= self.difficulty[1] <= 1.0:
            raise ValueError(f"difficulty must be [low, high] within 0…1, got {list(self.difficulty)}")
        if self.match_over is not None and not self.match_over:
            raise ValueError("match_over is empty; leave it out to match over all teachers")
        return self


class Lora(Spec):
    """Low-rank adapters (peft) in place of full parameters. They are added to the weights before anything is published."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0.0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    targets: Literal["all-linear"] | tuple[str, ...] = Field("all-linear", description="or ends of module names")
    quantization: Literal["nf4"] | None = Field(None, description="of the frozen weights (QLoRA, bitsandbytes)")


class EarlyStop(Spec):
    """Stop a branch when its held-out loss no longer falls, and keep the weights at which it was lowest."""

    held_out_share: float = Field(
        0.1, gt=0.0, lt=1.0, description="of the corpus's problems, the same for all teachers"
    )
    every_steps: int = Field(10, ge=1, description="optimizer steps between two looks at the held-out loss")
    patience: int = Field(2, ge=1, description="looks without a new minimum that end the branch")


class Training(Spec):
    """One branch's optimisation. The paper leaves all but the step counts open (paper.md).

    A step's batch is `batch_size` examples; how they are laid out, split and spread over devices changes rounding
    only, so those fields (`_LAYOUT_FIELDS`) stay out of identity.
    """

    learning_rate: float = Field(5e-4, gt=0.0, description="where a method gives none of its own (paper: open)")
    batch_size: int = Field(32, ge=1, description="examples an optimizer step, over all devices (paper: open)")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    schedule_over: Literal["path", "round"] = Field(
        "path", description="one schedule, warm-up included, over all rounds, or a fresh one each round (paper: open)"
    )
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.95, ge=0.0, lt=1.0)
    max_grad_norm: float = Field(1.0, gt=0.0)
    max_example_tokens: int = Field(192, ge=2, description="prompt and completion; what longer ones do, says too_long")
    too_long: Literal["error", "drop", "cut"] = Field(
        "error",
        description="longer examples stop the branch, are left out, or lose their end; the last two are counted",
    )
    precision: Literal["float32", "bfloat16", "pure_bfloat16"] = Field(
        "float32",
        description="bfloat16 computes in bf16 with weights and moments in fp32; pure_bfloat16 has all in bf16",
    )
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="adamw8bit: bitsandbytes, block-wise 8-bit moments"
    )
    optimizer_between_rounds: Literal["reset", "carry", "average"] = Field(
        "reset",
        description="a branch's moments start at zero, as its own last ones, or as the mean of all (paper: open)",
    )
    lora: Lora | None = Field(None, description="absent: full parameters (paper: open)")
    early_stop: EarlyStop | None = Field(None, description="absent: every branch takes all its steps, as in the paper")
    ema_decay: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="publish the exponential moving average of the weights along the branch, from its start on; absent: "
        "the last weights",
    )
    layout: Literal["padded", "packed"] = Field(
        "padded", description="padded: examples of like length side by side; packed: end to end in one row, no padding"
    )
    micro_batch_tokens: int | None = Field(
        None, ge=1, description="of one forward pass, padding included; absent: a device's whole share of the batch"
    )
    loss: Literal["auto", "full", "chunked", "liger"] = Field(
        "auto",
        description="full: all logits at once; chunked: a chunk's; auto: chunked from 4,096 words of vocabulary",
    )
    loss_chunk_tokens: int = Field(512, ge=1, description="tokens whose logits exist at once under chunked")
    attention: Literal["sdpa", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = Field(False, description="keep each layer's input only and compute the rest again")
    offload_activations: bool = Field(False, description="keep what the backward pass needs in the host's memory")
    devices: int = Field(1, ge=1, description="that one branch is sharded over (FSDP2)")

    @model_validator(mode="after")
    def _combinations_that_run(self) -> Training:
        if self.optimizer_between_rounds != "reset" and self.lora is not None:
            raise ValueError(
                "optimizer_between_rounds must be 'reset' with lora: adapters start anew each round, and moments of the "
                "old ones say nothing about them"
            )
        if self.optimizer_between_rounds == "average" and self.optimizer == "adamw8bit":
            raise ValueError("optimizer_between_rounds 'average' needs optimizer 'adamw': 8-bit moments have no mean")
        if self.ema_decay is not None and (self.early_stop is not None or self.optimizer_between_rounds != "reset"):
            raise ValueError(
                "ema_decay needs every step of a branch, and moments that start anew: leave early_stop out, and "
                "optimizer_between_rounds at 'reset'"
            )
        if self.ema_decay is not None and self.precision == "pure_bfloat16":
            raise ValueError(
                "ema_decay needs weights in float32: in bfloat16 an average rounds its small steps away; use precision "
                "'bfloat16' or 'float32'"
            )
        if self.devices > 1 and (self.optimizer == "adamw8bit" or (self.lora is not None and self.lora.quantization)):
            raise ValueError("devices must be 1 with adamw8bit or lora.quantization: bitsandbytes does not shard here")
        if self.attention == "flash_attention_2" and self.precision == "float32":
            raise ValueError("attention 'flash_attention_2' needs precision 'bfloat16' or 'pure_bfloat16'")
        return self

    def record(self) -> dict[str, Any]:
        """What enters a branch's identity, for the rounds' part see `mot_core.dag.branch_step`. A field that is newer
        than the first branches and at its default leaves no trace, so that those keep their identities."""
        outside = _LAYOUT_FIELDS | _ROUND_FIELDS
        whole = self.model_dump(mode="json", exclude=outside)
        changed = self.model_dump(mode="json", exclude=outside, exclude_defaults=True)
        return {key: value for key, value in whole.items() if key in _ALWAYS_RECORDED or key in changed}

    def layout_record(self) -> dict[str, Any]:
        """How a branch is computed; of no weight for what comes out, but for rounding."""
        return self.model_dump(mode="json", include=_LAYOUT_FIELDS)


_LAYOUT_FIELDS = {
    "layout", "micro_batch_tokens", "loss", "loss_chunk_tokens", "attention", "gradient_checkpointing",
    "offload_activations", "devices",
}  # fmt: skip
_ROUND_FIELDS = {"schedule_over", "optimizer_between_rounds"}
_ALWAYS_RECORDED = {
    "learning_rate", "batch_size", "schedule", "warmup_steps", "weight_decay", "beta1", "beta2", "max_grad_norm",
    "max_example_tokens",
}  # fmt: skip


class Barrier(Spec):
    """Loss along the lines start – branch – merge, after each merge."""

    num_examples: int = Field(8, ge=1, description="of each corpus")
    num_points: int = Field(5, ge=2, description="on each line, its ends included")


class Merge(Spec):
    """How branches become the next student: θₜ ← Σ wₖ θₜᵏ (paper, method), or another rule (docs/merging.md).

    Weights and parameters may be lists by round: round t takes the t-th, later rounds the last.
    """

    rule: str = Field("mean", description="a registered rule, or package.module:function")
    weights: dict[str, float | tuple[float, ...]] | None = Field(
        None, description="teacher → weight; absent: 1/K. Rule weighted_mean needs them, rule mean has none"
    )
    weights_by: Literal["teacher_accuracy"] | None = Field(
        None, description="teacher_accuracy: the share of a teacher's rationales that are right, scaled to sum to 1"
    )
    parameters: dict[str, Scalar | tuple[Scalar, ...]] = Field({}, description="of the rule, e.g. density of ties")
    seed: Seed = Field(0, description="of rules that draw at random (dare, dare_ties)")
    barrier: Barrier | None = Field(None, description="absent: not measured; it takes a model in fp32 and its time")

    @model_validator(mode="after")
    def _consistent(self) -> Merge:
        from mot_core.errors import SpecError
        from mot_core.merging import RULES
        from mot_core.merging.rules import rule_named

        given = [name for name in ("weights", "weights_by") if getattr(self, name) is not None]
        if (self.rule == "mean" and given) or (self.rule == "weighted_mean" and len(given) != 1):
            raise ValueError(
                "weights belong to the rule weighted_mean and to rules other than mean, whose weights are 1/K: give "
                f"exactly one of weights, weights_by to weighted_mean and none to mean; got {given or 'none'}"
            )
        if len(given) == 2:
            raise ValueError("weights and weights_by say the same: give one of both")
        for round_index in range(1, self._num_scheduled + 1):
            self._check_weights(round_index)
            if self.rule in RULES:
                try:
                    rule_named(self.rule, self.parameters_at(round_index))
                except SpecError as error:
                    raise ValueError(str(error)) from None
        return self

    def _check_weights(self, round_index: int) -> None:
        from mot_core.merging.rules import rule_class

        weights, rule = self.weights_at(round_index), rule_class(self.rule)
        if weights is None:
            return
        total = math.fsum(weights.values())
        if rule.averages and abs(total - 1.0) > 1e-6:
            raise ValueError(f"weights must sum to 1, got {total:g} from {weights}")
        if not rule.negative_weights and any(weight < 0.0 for weight in weights.values()):
            raise ValueError(f"weights must not be negative, got {weights}")

    @property
    def _num_scheduled(self) -> int:
        values = [*self.parameters.values(), *(self.weights or {}).values()]
        return max([1, *(len(value) for value in values if isinstance(value, tuple))])

    def weights_at(self, round_index: int) -> dict[str, float] | None:
        """The weights by teacher of a round, counted from 1."""
        if self.weights is None:
            return None
        return {name: float(_scheduled(weight, round_index)) for name, weight in self.weights.items()}

    def parameters_at(self, round_index: int) -> dict[str, Scalar]:
        """The rule's parameters of a round, as far as they are given."""
        return {name: _scheduled(value, round_index) for name, value in self.parameters.items()}


def _scheduled(value: Any, round_index: int) -> Any:
    """A round's value of a schedule: the last one holds from its end on."""
    if not isinstance(value, tuple):
        return value
    if not value:
        raise ValueError("a schedule by round is empty; give at least one value")
    return value[min(round_index, len(value)) - 1]


class Method(Spec):
    """One way to distil, with the learning rate that its own sweep chose."""

    name: Name
    variant_of: str | None = Field(None, description="a built-in method, run under another name and settings")
    learning_rate: float | None = Field(None, gt=0.0, description="absent: training.learning_rate")
    learning_rate_scale: float | None = Field(
        None, gt=0.0, description="of a variant: times the rate of the method that it is a variant of"
    )
    teachers: tuple[Name, ...] | None = Field(None, min_length=1, description="whose corpora it has; absent: all")
    training: dict[str, Scalar | None] = Field({}, description="fields of training that differ for this method")
    import_path: str | None = Field(None, description="a method of your own: package.module:function")

    @model_validator(mode="after")
    def _consistent(self) -> Method:
        if self.variant_of is not None and self.import_path is not None:
            raise ValueError(f"method {self.name!r}: give variant_of or import_path, not both")
        if self.learning_rate_scale is not None and (self.variant_of is None or self.learning_rate is not None):
            raise ValueError(
                f"method {self.name!r}: learning_rate_scale belongs to a variant without a learning_rate of its own"
            )
        if "learning_rate" in self.training:
            raise ValueError(f"method {self.name!r}: learning_rate is a field of the method, not of its training")
        return self

    @property
    def builtin(self) -> str:
        """The built-in method behind the name; of one's own method, the name."""
        return self.variant_of or self.name


# Braces after a command are TeX's: \boxed{answer}, \frac{a}{b}.
_TEX = re.compile(r"\\[A-Za-z]+(\{\w*\})+")
_PLACEHOLDER = re.compile(r"\{(\w*)\}")


class Benchmark(ProblemSource):
    """Problems with a grader, asked k times each. `benchmark: NAME` stands for the fields of a published one's entry in
    `mot_core.evaluation.catalogue`, under those that are given."""

    SHORTHANDS: ClassVar[tuple[str, ...]] = ("benchmark",)

    name: Name
    role: Literal["home", "panel"] = Field("home", description="home: what is distilled; panel: what may be forgotten")
    split: Split = "test"
    k: int = Field(4, ge=1, description="the k of avg@k: how many samples of a problem are averaged")
    num_samples: int | None = Field(None, ge=1, description="samples drawn a problem; absent: k")
    sampling: Sampling = Sampling()
    grader: str = Field("family", description="a registered grader, or package.module:function; of a gym: gym")
    prompt: str | None = Field(
        None, description="what a student is given, with {question} in it; absent: the bare question, as in training"
    )
    system: str | None = Field(None, description="a system message before every question; absent: none, as in training")

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        if isinstance(given, dict) and "benchmark" in given:
            from mot_core.evaluation.catalogue import resolved

            given = resolved(given)
        if isinstance(given, dict) and given.get("gym") is not None and "grader" not in given:
            given = {**given, "grader": "gym"}
        return given

    @model_validator(mode="after")
    def _prompt_asks_the_question(self) -> Benchmark:
        if self.prompt is None:
            return self
        places = _PLACEHOLDER.findall(_TEX.sub("", self.prompt))
        if places != ["question"] or self.prompt.count("{question}") != 1:
            raise ValueError(
                f"prompt needs {{question}} once and no other placeholder, got "
                f"{', '.join(f'{{{place}}}' for place in places) or 'none'} in {self.prompt[:80]!r}"
            )
        return self

    @model_validator(mode="after")
    def _k_within_samples(self) -> Benchmark:
        if self.num_samples is not None and self.k > self.num_samples:
            raise ValueError(
                f"k is {self.k} but only {self.num_samples} samples are drawn; lower k or raise num_samples"
            )
        return self

    @property
    def has_dev(self) -> bool:
        """Whether it has a dev split. With `splits` that name none, only final students are asked, on test."""
        return self.splits is None or "dev" in self.splits

    @property
    def samples_drawn(self) -> int:
        return self.num_samples if self.num_samples is not None else self.k


class OnPolicy(Spec):
    """On-policy distillation from all teachers (methods opd, mot_opd; docs/on-policy.md). Its optimisation is `training`'s;
    batches always lie padded, with all logits of a pass at once."""

    beta: float = Field(
        1.0, ge=0.0, le=1.0,
        description="of the generalised Jensen-Shannon divergence: 1 is reverse KL(student ‖ teacher), 0 forward KL",
    )  # fmt: skip
    target: Literal["mean", "each"] = Field(
        "mean",
        description="mean: the divergence from the equal-weight mixture of the teachers' distributions; each: the mean "
        "over teachers of the divergence from each",
    )
    temperature: float = Field(
        1.0, gt=0.0, le=2.0, description="at which the student is sampled; not of the divergence"
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, description="longer completions are cut, and count up to there; absent: generation.sampling's"
    )


class Harness(Spec):
    """Tasks that EleutherAI's lm-evaluation-harness runs on final students, as its version has them (docs/harness.md)."""

    name: Name
    role: Literal["home", "panel"] = Field("panel", description="home: what is distilled; panel: what may be forgotten")
    tasks: tuple[str, ...] = Field(min_length=1, description="tasks, groups or tags by lm-eval's names")
    num_fewshot: int | None = Field(None, ge=0, description="absent: as each task says")
    limit: int | None = Field(None, ge=1, description="documents of each task, from its first; absent: all")
    apply_chat_template: bool = Field(True, description="examples are then turns of the chat")
    system_instruction: str | None = None
    gen_kwargs: dict[str, Scalar | tuple[str, ...]] = Field(
        {},
        description="goes before a task's own generation_kwargs, e.g. max_gen_toks, temperature with do_sample: true",
    )
    model_args: dict[str, Scalar] = Field({}, description="how lm-eval loads the student and reads what it writes")
    batch_size: int = Field(8, ge=1, description="part of what is measured: another one may flip a near tie")
    seed: Seed = Field(0, description="of lm-eval's four: Python, NumPy, torch, few-shot examples")
    include_path: str | None = Field(None, description="a folder of tasks of your own: YAML, data, code")
    metric: str | None = Field(
        None, description="what tables show, as metric or metric,filter; absent: each task's first. All are kept"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Harness:
        _unique(f"harness {self.name!r}: tasks", list(self.tasks))
        allowed = ("add_bos_token", "dtype", "enable_thinking", "max_length", "softmax_dtype", "think_end_token")
        unknown = sorted(set(self.model_args) - set(allowed))
        if unknown:
            raise ValueError(f"harness {self.name!r}: model_args has {unknown}; allowed: {', '.join(allowed)}")
        return self


class PathEvaluation(Spec):
    """Evaluation along the path, on the dev split: choices are made here, never on test."""

    rounds: Literal["all", "last"] | tuple[int, ...] = "all"
    num_problems: int = Field(200, ge=1, description="a benchmark")
    k: int = Field(1, ge=1)
    methods: tuple[str, ...] | None = Field(None, description="whose rounds; absent: all. Every method's last is")
    every_steps: int | None = Field(
        None,
        ge=1,
        description="a path of one branch (std, mtd) is also followed every so many optimizer steps inside its rounds; "
        "absent: at round boundaries only",
    )


class Evaluation(Spec):
    """What is measured, when. The test split is touched once: by the students that the stopping rule chose."""

    benchmarks: tuple[Benchmark, ...] = Field(min_length=1)
    path: PathEvaluation = PathEvaluation()
    seed: Seed = 0
    completer: str = Field(
        "transformers", description="who samples students: transformers, vllm, or package.module:Class"
    )
    engine: Engine | None = Field(None, description="with completer vllm; absent: its defaults")
    batch_size: int = Field(256, ge=1)
    max_failed_share: float = Field(0.05, ge=0.0, le=1.0)
    ci_resamples: int = Field(10_000, ge=100)
    harness: tuple[Harness, ...] = Field(
        (), description="what lm-evaluation-harness measures of final students, on test"
    )

    @model_validator(mode="after")
    def _samples_weights(self) -> Evaluation:
        if self.completer in ("openai", "corpus"):
            raise ValueError(
                f"completer {self.completer!r} cannot sample a student's weights; use transformers or vllm"
            )
        if self.engine is not None and self.completer != "vllm":
            raise ValueError(f"engine belongs to completer 'vllm', but completer is {self.completer!r}")
        return self


class Tuning(Spec):
    """The sweep that gives each method its learning rate: same grid, same dev problems, one training seed."""

    learning_rates: tuple[float, ...] = Field((2e-4, 5e-4, 1e-3), min_length=1)
    training_seed: Seed = 1000
    score: Literal["mean", "best"] = Field(
        "mean",
        description="of a method with a student a teacher (std): the mean over them, or its best one, which is what other "
        "methods are compared with",
    )
    record: str | None = Field(None, description="identity of the sweep whose choices this spec carries")


class Experiment(Spec):
    """One experiment: the whole DAG from problems to report follows from it."""

    name: Name
    description: str = ""
    student: Student
    teachers: tuple[Teacher, ...] = Field(min_length=1)
    problems: ProblemSource
    generation: Generation = Generation()
    corpus: Corpus = Corpus()
    training: Training = Training()
    rounds: int = Field(5, ge=1, description="T (paper: 5)")
    steps_per_round: int = Field(50, ge=1, description="S, optimizer steps a branch a round (paper: 50)")
    merge: Merge = Merge()
    on_policy: OnPolicy = OnPolicy()
    stopping_rule: Literal["last_round"] | int = Field(
        "last_round", description="or a round's number, fixed before anything is measured; never the best of the rounds"
    )
    methods: tuple[Method, ...] = Field(min_length=1)
    budgets: tuple[BudgetName, ...] = Field(("matched_path",), min_length=1)
    training_seeds: tuple[Seed, ...] = Field((0,), min_length=1)
    evaluation: Evaluation
    tuning: Tuning = Tuning()
    keep: Keep = Field(
        "all",
        description="which weights stay when mot gc removes things: all; merged: every round's merge and the final "
        "students; last: the final students (docs/retention.md)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        _unique("teachers", [teacher.name for teacher in self.teachers])
        _unique("methods", [method.name for method in self.methods])
        _unique("budgets", list(self.budgets))
        _unique("training_seeds", [str(seed) for seed in self.training_seeds])
        _unique("evaluation.benchmarks", [benchmark.name for benchmark in self.evaluation.benchmarks])
        _unique("evaluation.harness", [entry.name for entry in self.evaluation.harness])
        home = [benchmark for benchmark in self.evaluation.benchmarks if benchmark.role == "home"]
        trains = any(method.builtin != "base" for method in self.methods)
        if trains and not any(benchmark.has_dev for benchmark in home):
            without = " with a dev split" if home else ""
            raise ValueError(
                f"evaluation.benchmarks has none of role 'home'{without}: the best teacher is chosen on home, dev"
            )
        self._check_methods()
        self._check_merge_weights()
        unknown = set(self.corpus.match_over or ()) - {teacher.name for teacher in self.teachers}
        if unknown:
            raise ValueError(f"corpus.match_over names {sorted(unknown)}, not among teachers")
        rounds = self.evaluation.path.rounds
        if not isinstance(rounds, str):
            outside = [r for r in rounds if not 1 <= r <= self.rounds]
            if outside:
                raise ValueError(f"evaluation.path.rounds names {outside}, outside 1…{self.rounds}")
        every, length = self.evaluation.path.every_steps, self.rounds * self.steps_per_round
        if every is not None and every >= length:
            raise ValueError(
                f"evaluation.path.every_steps is {every}, but a path has {length} optimizer steps (rounds × steps_per_round) "
                "and its end is evaluated anyway: give a smaller number, or leave it out"
            )
        if isinstance(self.stopping_rule, int) and not 1 <= self.stopping_rule <= self.rounds:
            raise ValueError(f"stopping_rule is round {self.stopping_rule}, outside 1…{self.rounds}")
        return self

    def _check_methods(self) -> None:
        names = {method.name for method in self.methods}
        for method in self.methods:
            if method.import_path is None and method.builtin not in BUILTIN_METHODS:
                raise ValueError(
                    f"method {method.builtin!r} is not known; known: {', '.join(BUILTIN_METHODS)}; "
                    f"{nearest(method.builtin, BUILTIN_METHODS)}or give variant_of for one of these under another name, "
                    "or import_path for one of your own"
                )
            if method.variant_of in ("base", "ensemble"):
                raise ValueError(f"method {method.name!r}: {method.variant_of!r} trains nothing and has no variants")
            if method.variant_of is not None and method.name in BUILTIN_METHODS:
                raise ValueError(
                    f"method {method.name!r} is a variant of {method.variant_of!r}, but its name is a built-in method's; "
                    "give it another name"
                )
            self.training_of(method)
            self._check_teachers_of(method)
        if "ensemble" in names:
            std = next((method for method in self.methods if method.name == "std"), None)
            if std is None or std.teachers is not None:
                raise ValueError(
                    "method 'ensemble' votes over the STD students of all teachers: add 'std', without teachers"
                )
        unknown = set(self.evaluation.path.methods or ()) - names
        if unknown:
            raise ValueError(f"evaluation.path.methods names {sorted(unknown)}, not among methods: {sorted(names)}")

    def _check_teachers_of(self, method: Method) -> None:
        named, known = method.teachers or (), {teacher.name for teacher in self.teachers}
        unknown = sorted(set(named) - known)
        if unknown:
            raise ValueError(f"method {method.name!r}: teachers names {unknown}, not among teachers: {sorted(known)}")
        if len(set(named)) != len(named):
            raise ValueError(f"method {method.name!r}: teachers repeats a name: {list(named)}")
        if named and set(named) != known and self.merge.weights is not None and method.builtin != "std":
            raise ValueError(
                f"method {method.name!r} has some of the teachers, but merge.weights are over all; leave the weights out"
            )

    def _check_merge_weights(self) -> None:
        if self.merge.weights is not None:
            expected = {teacher.name for teacher in self.teachers}
            if set(self.merge.weights) != expected:
                raise ValueError(
                    f"merge.weights names {sorted(self.merge.weights)}, expected every teacher: {sorted(expected)}"
                )

    @property
    def identity(self) -> str:
        """The spec's own hash (description and what is kept apart, which change no result)."""
        return fingerprint(self.model_dump(mode="json", exclude={"description", "keep"}))

    @property
    def final_round(self) -> int:
        """The round whose student is reported."""
        return self.rounds if self.stopping_rule == "last_round" else int(self.stopping_rule)

    def learning_rate(self, method_name: str) -> float:
        """The rate that a method trains at."""
        for method in self.methods:
            if method.name != method_name:
                continue
            if method.learning_rate is not None:
                return method.learning_rate
            if method.variant_of is not None:
                return (method.learning_rate_scale or 1.0) * self.learning_rate(method.variant_of)
        if method_name in _RATE_OF:
            return self.learning_rate(_RATE_OF[method_name])
        return self.training.learning_rate

    def training_of(self, method: Method) -> Training:
        """The training of a method's branches: the experiment's, but for the fields that the method gives."""
        if not method.training:
            return self.training
        return Training.model_validate({**self.training.model_dump(mode="json"), **method.training})


def nearest(word: str, allowed: Any) -> str:
    """`did you mean 'x'? ` for the closest allowed word, or nothing."""
    import difflib

    matches = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f"did you mean {matches[0]!r}? " if matches else ""


def _unique(where: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{where}: duplicate {', '.join(map(repr, repeated))}; each name must be given once")


def local_directory(model: str) -> Path | None:
    """The directory that a model reference names, if it names one (`lab:NAME` or an existing path)."""
    if model.startswith("lab:"):
        from mot_core.lab import lab_model_path

        return lab_model_path(model.removeprefix("lab:"))
    try:
        path = Path(model).expanduser()
        return path if path.is_dir() else None
    except (OSError, RuntimeError):  # a name too long for any file, a home directory of nobody
        return None
