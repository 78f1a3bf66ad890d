"""Steps whose ranks and micro-batches have different kinds of rows (all text, all images, mixed, empty), on one layout.

    mixed_rows_ranks.py OUT.json tensor=A pipeline=B [sequence=true]

Writes, for every architecture, frozen and unfrozen, what the steps reported. All replicas together always train on the same rows.
"""

import json
import sys
from pathlib import Path

from nvlm_train.config.compose import compose
from nvlm_train.contracts import StepBatch
from nvlm_train.engine.megatron import MegatronEngine
from tests.model.rows import T, make_row

# Row kinds of a step, dealt to the replicas in halves: one rank all text and one all images, both mixed, and one with nothing at all.
STEPS = {"text | images": ("text", "text", "image", "image"), "mixed": ("mixed", "text", "image", "mixed"),
         "images | empty": ("image", "mixed", "empty", "empty"), "only text": ("text", "text", "text", "text")}
FROZEN = {"nvlm_d": "[connector]", "nvlm_x": "[connector,cross_attention]", "nvlm_h": "[connector,cross_attention]"}


def reports(architecture: str, trainable: str, layout: list[str]) -> list[list[float]]:
    gates = [] if architecture == "nvlm_d" else ["model.cross_attention.gate_init=0.3"]
    run = compose([f"recipe={architecture}_tiny", "stage=sft", f"data.pack_tokens={T}", f"train.trainable={trainable}", *gates, *layout])[0]
    engine = MegatronEngine(run)
    found = []
    for number, kinds in enumerate(STEPS.values()):
        rows = [make_row(architecture, 10 * number + i, kind) for i, kind in enumerate(kinds)]
        each = len(rows) // engine.data_size
        mine = rows[each * engine.data_rank:each * (engine.data_rank + 1)]
        report = engine.train_step(StepBatch(number, mine, (), 0), 1e-3)
        found.append([report.loss, report.grad_norm])
    engine.close()
    return found


def main() -> None:
    out, *layout = sys.argv[1:]
    layout = [f"layout.{setting}" for setting in layout]
    found = {f"{architecture} {kind}": reports(architecture, trainable, layout)
             for architecture in FROZEN
             for kind, trainable in (("frozen", FROZEN[architecture]), ("unfrozen", "[connector,language]"))}
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
