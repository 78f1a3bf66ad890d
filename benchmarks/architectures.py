"""A training step of NVLM-D, -X and -H on the same pictures and text, in both stages. `python -m benchmarks.architectures`

Each row is one sample: a picture of six tiles and its thumbnail, and text. What differs is what the paper's section 2.5 compares: the
length of the sequence, and how far gradients go. In stage 1 (language model frozen) X's stop at its first cross-attention layer.

Seconds are the fastest of several rounds, the architectures taking turns. With --recipe 2b it is a benchmark for a GPU. The tiny
recipe's time goes into calls, not into arithmetic; a size that fits two cores and is mostly arithmetic, as real ones are:

    python -m benchmarks.architectures --words 96 --rows 2 --rounds 3 model.vision.tile_size=64 model.language.hidden=512 \
        model.language.layers=12 model.language.heads=8 model.language.head_dim=64 model.language.ffn=1408
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks.results import tell
from benchmarks.samples import one_sample
from benchmarks.timing import name_of, seconds
from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Run
from nvlm_train.contracts import PackedBatch, StepBatch
from nvlm_train.data.encode import Encoder
from nvlm_train.data.packing import pack_row
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.geometry import geometry_of
from nvlm_train.model.accounting import trained_components, useful_flops
from nvlm_train.training.metrics import sample_work

ARCHITECTURES = ("nvlm_d", "nvlm_x", "nvlm_h")


def prepare(architecture: str, stage: str, recipe: str, words: int, overrides: Sequence[str]) -> tuple[Run, PackedBatch]:
    """The run and its row, just long enough for the sample."""
    settings = [f"recipe={architecture}_{recipe}", f"stage={stage}", "model.tags.kind=1d", "data.max_tiles=6", "data.format=chat",
                "data.pack_tiles=7", "data.pack_tokens=16384", "data.max_tokens=16384", "train.clip_grad=1"]
    if recipe not in ("tiny", "demo"):      # sizes only: no weights, no tokenizer of another model needed
        settings += ["model.vision.weights=null", "model.language.weights=null", "model.tokenizer=tiny"]
    settings += overrides
    run = compose(settings)[0]
    encoder = Encoder(run.model, run.data, load_tokenizer(run.model.tokenizer, run.data.template))
    encoded = encoder.encode(one_sample(words, run.model.vision.tile_size))
    tokens = -(-encoded.length // 64) * 64
    run = compose([*settings, f"data.pack_tokens={tokens}", f"data.max_tokens={tokens}", "+data.blend.benchmark.path=unused"])[0]
    return run, pack_row([encoded], tokens, encoder.tokenizer.pad_id, run.model.vision.tile_size)


def step_seconds(engine: MegatronEngine, row: PackedBatch, rows: int) -> float:
    return seconds(lambda: engine.train_step(StepBatch(0, [row] * rows, (), 0), 1e-5))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="tiny", help="tiny, demo or 2b: the size of nvlm_d, nvlm_x and nvlm_h")
    parser.add_argument("--words", type=int, default=48, help="words of the question")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of all three")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    options = parser.parse_args()

    result: dict = vars(options).copy()
    print(f"{'stage':<10}{'':<8}{'tokens':>8}{'memory':>8}{'GFLOP/sample':>14}{'ms/sample':>11}{'samples/s':>11}{'over D':>8}")
    for stage in ("pretrain", "sft"):
        prepared = {name: prepare(name, stage, options.recipe, options.words, options.overrides) for name in ARCHITECTURES}
        best = dict.fromkeys(ARCHITECTURES, float("inf"))
        for _ in range(options.rounds):
            for name, (run, row) in prepared.items():
                engine = MegatronEngine(run)
                step_seconds(engine, row, options.rows)      # warm
                best[name] = min(best[name], *(step_seconds(engine, row, options.rows) for _ in range(2)))
                result["device"] = name_of(engine.device)
                engine.close()
        result[stage] = {}
        for name, (run, row) in prepared.items():
            works = sample_work(row, geometry_of(run.model).tokens)
            flops = useful_flops(run.model, trained_components(run.model, run.train), works).total
            each = best[name] / options.rows
            result[stage][name] = {"tokens": works[0].tokens, "memory_tokens": works[0].memory_tokens, "flops_per_sample": flops,
                                   "seconds_per_sample": each, "time_over_d": best[name] / best["nvlm_d"]}
            print(f"{stage:<10}{name:<8}{works[0].tokens:>8}{works[0].memory_tokens:>8}{flops / 1e9:>14.2f}{each * 1e3:>11.1f}"
                  f"{1 / each:>11.1f}{result[stage][name]['time_over_d']:>8.2f}", flush=True)
    tell(result, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
