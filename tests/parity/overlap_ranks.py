"""The same steps with data-parallel messages beside the computing and after it, in many buckets. Run on several ranks; writes JSON.

    overlap_ranks.py OUT.json CASE[,CASE...] [override ...]
"""

import json
import sys
from contextlib import closing
from pathlib import Path

import torch

from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Run
from nvlm_train.contracts import StepBatch
from nvlm_train.engine import optimizer
from nvlm_train.engine.checkpoint import CheckpointStore, SaveFacts, load
from nvlm_train.engine.manifest import fingerprint
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.engine.overlap import overlapping
from nvlm_train.model.content import content_sum
from tests.model.rows import T, make_row

BUCKET = 20_000     # elements: of tiny models some thirty buckets, where a real bucket's 40 million would be one
# Kinds of each replica's rows: the last row of a step, whose backward sends, differs in kind, and so does the number of rows.
STEPS = ((("image", "text"), ("text", "image")), (("text",), ("image", "mixed", "image")), (("empty", "image"), ("mixed",)),
         (("image", "empty"), ("text",)), (("image",), ("text", "mixed")))
OPEN = "model.cross_attention.gate_init=0.3"
CASES = {"D": ("nvlm_d", "[connector,language]", []), "X": ("nvlm_x", "[connector,language]", [OPEN]),
         "frozen X": ("nvlm_x", "[connector,cross_attention]", [OPEN]), "H": ("nvlm_h", "[vision,connector,language]", [OPEN]),
         "tied": ("nvlm_d", "[vision,connector,language]", ["model.language.tie_embeddings=true"])}


def rows_of(kinds: list[str], architecture: str, number: int, replica: int, rounds: int) -> list:
    """At least one, a multiple of `rounds`, which an interleaved pipeline wants."""
    kinds = [*kinds, *["empty"] * (-len(kinds) % rounds)]
    return [make_row(architecture, 100 * number + 10 * replica + i, kind) for i, kind in enumerate(kinds)]


def run_of(name: str, overlap: str, words: list[str]) -> Run:
    architecture, trainable, settings = CASES[name]
    return compose([f"recipe={architecture}_tiny", "stage=sft", f"data.pack_tokens={T}", f"train.trainable={trainable}",
                    "train.clip_grad=0", *settings, *words, f"layout.overlap={overlap}"])[0]


def weights(engine: MegatronEngine) -> list:
    """A sum of each component on every rank."""
    return engine.gather_objects([content_sum(stage.sharded_state_dict(), part) for stage in engine.stages()
                                  for part in ("vision", "connector", "language")])


def resumed(name: str, overlap: str, words: list[str], store: CheckpointStore) -> list:
    """Weights after one more step from the checkpoint, with the other setting's buckets."""
    run = run_of(name, {"true": "false", "false": "true"}[overlap], [*words, "train.seed=7"])
    with closing(MegatronEngine(run)) as engine:
        load(store.latest(), engine, fingerprint(run, "none"))
        return [step(engine, run, 0)[0], weights(engine)]


def step(engine: MegatronEngine, run: Run, number: int) -> tuple[float, float]:
    """Loss and gradient norm."""
    rounds = run.layout.pipeline if run.layout.virtual > 1 else 1
    rows = rows_of(STEPS[number][engine.data_rank % 2], run.model.architecture, number, engine.data_rank, rounds)
    report = engine.train_step(StepBatch(number, rows, (), 0), 1e-3)
    return report.loss, report.grad_norm


def trained(name: str, overlap: str, words: list[str], folder: Path) -> dict:
    run = run_of(name, overlap, words)
    architecture = run.model.architecture
    with closing(MegatronEngine(run)) as engine:
        groups = [group for chunk in engine.chunks for group in chunk.bucket_groups]
        found = {"losses": [], "norms": [], "beside": [], "alone": [], "groups": len(groups)}
        finish = engine._finish_gradients

        def counted(*args, **rest):
            found["beside"].append(sum(group.grad_reduce_handle is not None for group in groups))
            finish(*args, **rest)

        engine.config.finalize_model_grads_func = counted
        for number in range(len(STEPS)):
            loss, norm = step(engine, run, number)
            found["losses"].append(loss)
            found["norms"].append(norm)
            if engine.data_rank == 0:       # one replica alone, right after the step: nobody else may be needed
                found["alone"].append([float(engine.logits(make_row(architecture, 9, kind), torch.arange(0, T, 7)).double().sum())
                                       for kind in ("image", "text")])
        found["weights"] = weights(engine)
        store = CheckpointStore(folder / f"{name}-{overlap}", keep_last=1)
        store.save(engine, SaveFacts(stage="sft", config={}, fingerprint=fingerprint(run, "none"), cursor=0), len(STEPS))
        found["later"] = [step(engine, run, 0)[0], weights(engine)]
    return found | {"resumed": resumed(name, overlap, words, store)}


def main() -> None:
    out, cases, *words = sys.argv[1:]

    def small():
        config = overlapping()
        config.bucket_size = BUCKET
        return config

    optimizer.overlapping = small
    found = {name: {overlap: trained(name, overlap, words, Path(out).parent) for overlap in ("true", "false")} for name in cases.split(",")}
    if torch.distributed.get_rank() == 0:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
