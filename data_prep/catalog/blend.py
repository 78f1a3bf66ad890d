"""Writes recipes/blend/nvlm_paper.yaml: the paper's datasets as a blend, with sampling weights that are this project's.

The paper publishes neither weights nor counts. Here a dataset's weight goes with the square root of its size, which lies between two
extremes: in proportion to size, LAION is nearly all of pretraining; all alike, a set of 150 forms is repeated hundreds of times. In
finetuning sizes count up to a limit, as in T5 (arXiv 1910.10683, section 3.5.2). A size that is not known counts as the median.
"""

import math
from collections.abc import Mapping
from statistics import median

from data_prep.catalog.entries import TASKS, Entry, in_group

TEXT_SHARE = 0.2    # of finetuning; as in recipes/blend/nvlm.yaml
LIMIT = {"pretrain": None, "sft": 200_000, "text": 200_000}     # a size counts up to this, so that no set rules finetuning

HEAD = """\
# @package _global_
# The paper's datasets, one source each: 18 in pretraining (Table 4), 83 and 12 of text in finetuning (Table 6, section 5.3).
# Choose it with blend=nvlm_paper. Each is a folder of shards, $NVLM_DATA/shards/NAME (else ./data/shards/NAME), NAME as in the
# catalog: docs/datasets.md. Leave out what you lack: ~data.blend.NAME.
#
# THE WEIGHTS ARE OURS. The paper publishes none, nor counts, nor the share of text. A source's weight goes with the square root of
# its size in the catalog (the median of its stage where that is not known), in finetuning with at most that of 200,000; text has
# one in five. Slots come in blocks of 1,000 in which every source has at least one, so no share is below 0.1 %.
#
# Written by: python -m data_prep catalog --blend
"""


def weights(catalog: Mapping[str, Entry], stage: str) -> dict[str, float]:
    """Dataset -> share of a stage (pretrain, sft, text); they sum to 1. In the order of the task groups."""
    sizes = {found.name: found.size for group in TASKS[stage] for found in in_group(catalog, stage, group)}
    typical = median(size for size in sizes.values() if size)
    roots = {name: math.sqrt(min(size or typical, LIMIT[stage] or math.inf)) for name, size in sizes.items()}
    return {name: root / sum(roots.values()) for name, root in roots.items()}


def blend_recipe(catalog: Mapping[str, Entry]) -> str:
    """The whole file."""
    parts = {"pretrain": [("pretrain", 1.0)], "sft": [("sft", 1 - TEXT_SHARE), ("text", TEXT_SHARE)]}
    lines = ["stages:"]
    for stage, blended in parts.items():
        lines += [f"  {stage}:", "    data:", "      blend:"]
        for part, share in blended:
            group = None
            for name, weight in weights(catalog, part).items():
                if catalog[name].task[part] != group:
                    group = catalog[name].task[part]
                    lines.append(f"        # {'Text: ' if part == 'text' else ''}{TASKS[part][group]}")
                lines.append(f'        {name}: {{path: "${{oc.env:NVLM_DATA,data}}/shards/{name}", weight: {share * weight:.5f}}}')
    return HEAD + "\n".join(lines) + "\n"
