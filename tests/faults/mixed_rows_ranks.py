"""Steps whose ranks and micro-batches have different kinds of rows (all text, all images, mixed, empty), on one layout.

    mixed_rows_ranks.py OUT.json tensor=A pipeline=B [sequence=true]

Writes, for every architecture, frozen and unfrozen, what the steps reported. All replicas together always train on the same rows.
"""

import json
import sys
from pathlib import Path

from nvlm_train.config.compose import compose
from nvlm_train.contracts import StepBatch
from nvlm_train.training.stages import build_engine
from tests.model.rows import T, make_row

# Row kinds of a step, dealt to the replicas in halves: one rank all text and one all images, both mixed, and one with nothing at all.
STEPS = {"text | images": ("text", "text", "image", "image"), "mixed": ("mixed", "text", "image", "mixed"),
         "images | empty": ("image", "mixed", "empty", "empty"), "only text": ("text", "text", "text", "text")}
LATE = "model.cross_attention.layers=[3]"
NEW = "[connector,cross_attention]"
OPEN = "model.cross_attention.gate_init=0.3"
# name: (recipe, what is trained while the language model is frozen, settings). The third reads the memory in its last layer only: there a
# whole later stage has hidden states without a gradient. The last has a feed-forward in its cross-attention, and a resampler.
CASES = {"D": ("nvlm_d", "[connector]", []), "X": ("nvlm_x", NEW, [OPEN]), "X, last layer": ("nvlm_x", NEW, [OPEN, LATE]),
         "H": ("nvlm_h", NEW, [OPEN]), "Flamingo": ("flamingo", NEW, [OPEN])}


def reports(recipe: str, trainable: str, settings: list[str], layout: list[str]) -> list[list[float]]:
    """[loss, gradient norm] of each of STEPS. layout: further words, of the layout or the engine."""
    architecture = recipe if recipe.startswith("nvlm") else "nvlm_x"
    run = compose([f"recipe={recipe}_tiny", "stage=sft", f"data.pack_tokens={T}", f"train.trainable={trainable}", *settings, *layout])[0]
    engine = build_engine(run)
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
    found = {f"{name}, frozen": reports(recipe, new, settings, layout) for name, (recipe, new, settings) in CASES.items()}
    for name in ("D", "X", "H"):
        recipe, _, settings = CASES[name]
        found[f"{name}, unfrozen"] = reports(recipe, "[connector,language]", settings, layout)
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
