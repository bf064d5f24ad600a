"""The control: the union of corpora, split at random into parts, as many as there are teachers.

MoT's loop on these parts has the same data, branches and merges, but no branch belongs to a teacher; the
difference to MoT is what teacher-specific branches are worth. Of one teacher's corpus alone, parts show what branching
and merging are worth where there is no second teacher.
"""

from __future__ import annotations

import random
from typing import Any

from mot_core.corpus.tables import read_corpus, write_corpus
from mot_core.errors import CorpusError
from mot_core.identity import derive_seed
from mot_core.runner import StepContext


def build_shuffled_corpora(context: StepContext) -> dict[str, Any]:
    """Runner of `shuffled-corpora`: `part-<n>.parquet`, of equal size up to one, whatever the corpora's sizes are.

    Raises:
        CorpusError: fewer rationales than parts.
    """
    names = context.spec["teachers"]
    num_parts = context.spec.get("num_parts") or len(names)
    union = [row for name in names for row in read_corpus(context.parent_dir("corpora") / f"{name}.parquet")]
    if len(union) < num_parts:
        raise CorpusError(
            f"the corpora hold {len(union)} rationales, too few for {num_parts} parts; draw more problems"
        )
    random.Random(derive_seed("shuffle", context.spec["seed"])).shuffle(union)
    parts = [union[index::num_parts] for index in range(num_parts)]
    for index, rows in enumerate(parts):
        write_corpus(context.work_dir / f"part-{index + 1}.parquet", rows)
    return {"num_rationales": [len(rows) for rows in parts]}
