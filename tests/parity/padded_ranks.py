"""Trains a model whose vocabulary and vision heads no two ranks can share evenly, split over two ranks and whole, and goes on from the
one's checkpoint under the other. Run on two ranks; writes layout -> what was found as JSON.

    padded_ranks.py OUT.json
"""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Run
from nvlm_train.contracts import PackedBatch, StepBatch
from nvlm_train.engine.checkpoint import CheckpointStore, SaveFacts, load
from nvlm_train.engine.manifest import fingerprint
from nvlm_train.engine.megatron import MegatronEngine
from tests.model.rows import T, make_row

VOCAB, STEPS = 1025, 2
LAYOUTS = {"split": "layout.tensor=2", "whole": "layout.tensor=1"}      # the second: two replicas
OTHER = {"split": "whole", "whole": "split"}
SETTINGS = ("recipe=nvlm_d_tiny_6b", "stage=sft", f"model.language.vocab={VOCAB}", f"data.pack_tokens={T}", "run.device=cpu",
            "train.trainable=[vision,connector,language]", "model.vision.layers=1", "model.language.layers=2")


def row(seed: int) -> PackedBatch:
    """With the last token of the vocabulary, beside the padding, among what is read and what is to be said."""
    made = make_row("nvlm_d", seed)
    for tensor in (made.tokens_T, made.labels_T):
        tensor[100:300:7] = VOCAB - 1
    return made


def train(engine: MegatronEngine, first: int) -> list[list[float]]:
    """Loss and gradient norm of STEPS steps of two rows, from step `first` on."""
    found = []
    for step in range(first, first + STEPS):
        rows = [row(2 * step), row(2 * step + 1)][engine.data_rank::engine.data_size]
        report = engine.train_step(StepBatch(step, rows, (), 0), 5e-4)
        found.append([report.loss, report.grad_norm])
    return found


@torch.no_grad()
def padding(engine: MegatronEngine) -> Iterator[float]:
    """The largest element of the vocabulary's spare rows on this rank: in both tables, their master weights and moments."""
    language = engine.stages()[0].language
    spare = language.real_rows
    for table in (language.embedding.weight, language.output_layer.weight):
        if spare < len(table):
            yield float(table[spare:].abs().max())
            for state in engine.optimizer.chained_optimizers[0]._get_main_param_and_optimizer_states(table).values():
                yield float(state.view_as(table)[spare:].abs().max())


def facts_of(run: Run) -> SaveFacts:
    return SaveFacts(stage="sft", config={}, fingerprint=fingerprint(run, "none"), cursor=0)


def one_layout(name: str, folder: Path) -> dict:
    [run] = compose([*SETTINGS, LAYOUTS[name]])
    with closing(MegatronEngine(run)) as engine:
        rows = len(engine.stages()[0].language.embedding.weight) * engine.groups.tensor_size
        first = train(engine, 0)
        store = CheckpointStore(folder / name, keep_last=1)
        store.save(engine, facts_of(run), STEPS)
        later = train(engine, STEPS)
        logits = engine.logits(row(9), torch.arange(T))
        found = {"first": first, "later": later, "rows": rows, "logits": list(logits.shape), "finite": bool(logits.isfinite().all()),
                 "padding": [value for part in engine.gather_objects(list(padding(engine))) for value in part]}
    [other] = compose([*SETTINGS, LAYOUTS[OTHER[name]], "train.seed=7"])
    with closing(MegatronEngine(other)) as engine:
        manifest = load(store.latest(), engine, fingerprint(other, "none"))
        found["resumed"] = train(engine, STEPS)
        found["contents"] = {key: shape for section in manifest.contents.values() for key, (_, shape) in section.items()}
    return found


def tied(name: str) -> list[list[float]]:
    """One table for both ends."""
    [run] = compose([*SETTINGS, LAYOUTS[name], "model.language.tie_embeddings=true"])
    with closing(MegatronEngine(run)) as engine:
        return train(engine, 0)


def main() -> None:
    out = Path(sys.argv[1])
    found = {name: one_layout(name, out.parent) for name in LAYOUTS} | {f"tied {name}": tied(name) for name in LAYOUTS}
    if torch.distributed.get_rank() == 0:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
