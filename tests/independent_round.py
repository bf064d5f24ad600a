"""One round of MoT by TRL and mergekit alone, an independent check of ours: `python independent_round.py SETTINGS.json OUT`.

Of each corpus, a parquet file with a column `messages`, the rows named in the settings are trained on in their order.
"""

import json
import subprocess
import sys
from pathlib import Path

import yaml
from datasets import Dataset
from trl import SFTConfig, SFTTrainer


def train_branch(settings, corpus, out):
    rows = Dataset.from_parquet(corpus["file"], cache_dir=str(out / "cache")).select(corpus["rows"])
    examples = rows.map(
        lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
        remove_columns=rows.column_names,
    )
    config = SFTConfig(
        output_dir=str(out), model_init_kwargs={"dtype": "float32"}, completion_only_loss=True, max_length=None,
        per_device_train_batch_size=settings["batch_size"], max_steps=settings["num_steps"],
        train_sampling_strategy="sequential", learning_rate=settings["learning_rate"],
        lr_scheduler_type=settings["schedule"], warmup_steps=settings["warmup_steps"], optim="adamw_torch",
        weight_decay=settings["weight_decay"], adam_beta1=settings["beta1"], adam_beta2=settings["beta2"],
        max_grad_norm=settings["max_grad_norm"], use_cpu=True, bf16=False, gradient_checkpointing=False,
        save_strategy="no", report_to=[],
    )  # fmt: skip
    trainer = SFTTrainer(model=settings["student"], args=config, train_dataset=examples)
    trainer.train()
    trainer.save_model(str(out))


def main(settings_file, out):
    settings = json.loads(Path(settings_file).read_text())
    branches = []
    for name, corpus in settings["corpora"].items():
        train_branch(settings, corpus, out / name)
        branches.append({"model": str(out / name), "parameters": {"weight": corpus["weight"]}})
    recipe = out / "merge.yaml"
    recipe.write_text(yaml.safe_dump({"merge_method": "linear", "models": branches, "dtype": "float32"}))
    command = [sys.executable, "-m", "mergekit.scripts.run_yaml", str(recipe), str(out / "student")]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
