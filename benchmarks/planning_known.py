"""The planner against figures that are known: runs measured on one H100, and the paper's Table 3. `python -m benchmarks.planning_known`

Measured: 22 November 2026, H100 80GB SXM, torch 2.11 with CUDA 13.0. The rates of `nvlm_train/planning/rates.py` come from parts of the
first step (its matrix products, attention, host) and from both steps together (memory), so these show how well one set of rates
serves both, not that it serves others. Table 3 was measured by the paper's authors; nothing was fitted to it.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.contenders.result import model_of
from benchmarks.contenders.workloads import SHAPES, in_sequence, pieces
from benchmarks.results import tell
from nvlm_train.config.compose import compose
from nvlm_train.config.request import Assume
from nvlm_train.config.schema import Run, Train
from nvlm_train.data.packing import Cost, pack
from nvlm_train.kernels import COMPILED, KernelPlan
from nvlm_train.model.accounting import SampleWork
from nvlm_train.planning.cost import ROUNDED, TURNED, Pass, Place, Products
from nvlm_train.planning.decoder_time import CROSS_ENTROPY, Row
from nvlm_train.planning.devices import GPUS, Cluster
from nvlm_train.planning.plan import Plan, bench_of
from nvlm_train.planning.rates import Machine, machine
from nvlm_train.planning.row_time import row_costs
from nvlm_train.planning.samples import assumed_samples
from nvlm_train.planning.step import row_of

H100 = machine(GPUS["h100"])
LANGUAGE = model_of(SHAPES["1.5b"]).language
COMPILED_PLAN = KernelPlan("cuda", elementwise=COMPILED, rope=COMPILED)

# Forward and both gradients of one linear on 8,192 tokens: (in, out) -> TFLOP/s measured, in bf16 and in fp8 with its casts.
LINEARS = {(1536, 17920): (786, 745), (1536, 2048): (739, 317), (3584, 37888): (713, 925), (18944, 3584): (704, 875),
           (3584, 4608): (770, 752), (8192, 7392): (704, 902)}

# The paper's Table 3: milliseconds of an iteration of 256 samples, 34B, language model trained, 128 H100, tensor parallel 8.
TABLE_3 = {"nvlm_d": (2816, 8885), "nvlm_x": (1024, 5063), "nvlm_h": (1280, 7071)}

# What the paper leaves open, as settings that may have been theirs.
OPEN = {
    "as our recipes": [],
    "everything recomputed": ["model.recompute=full"],
    "nothing recomputed": ["model.recompute=none"],
    "no sequence parallelism": ["layout.sequence=false"],
    "cross-attention with all heads and its own feed-forward": ["model.cross_attention.kv_heads=56", "model.cross_attention.ffn=20480"],
}


@dataclass(frozen=True)
class Known:
    """One measurement and its prediction, in seconds."""

    name: str
    measured: float
    predicted: float

    @property
    def off(self) -> float:
        return self.predicted / self.measured - 1


def linear_tflops(wide: int, high: int, tokens: int = 8192, fp8: bool = False) -> float:
    """Predicted rate of one linear's forward and both gradients. fp8: casts included, the weight's too."""
    done = Place(H100, kernels=COMPILED_PLAN).linear(tokens, wide, high, True, True, Products(fp8=fp8))
    seconds = done.forward.matmul + done.backward.matmul
    if fp8:
        seconds += H100.moved((ROUNDED[True] + TURNED) * (tokens * (wide + high) + wide * high))
    return 6e-12 * tokens * wide * high / seconds


def steps() -> list[Known]:
    """Whole steps of a 1.5B model by others: in PyTorch's eager mode, to which the rate of memory was fitted, and with compiled layers,
    to which nothing was."""
    row = Row(8192, (4096, 4096), 0, 8192)
    # Megatron's layers with flash attention, fp32 master weights and gradients, fused AdamW; two samples of 4,096 tokens; no pictures.
    whole = _seconds(_run(("language",)), Place(H100), [row], with_encoder=False)
    # Plain PyTorch: bf16 weights, gradients (a row's read, their sum read and written, 6 bytes) and moments (14 in the update, 6 for norm
    # and clipping).
    plain = replace(H100, accumulate_bytes=6, clear_bytes=0, update_bytes=20)
    both, connector = _run(("connector", "language")), _run(("connector",))
    known = [Known("1.5B on 2 x 4,096 tokens, Megatron's layers", 0.229, whole),
             Known("1.5B and 300M encoder, finetuning, plain PyTorch", 96 / 29.3, _seconds(both, Place(plain), _packed(workload("finetuning"))))]
    compiled = Place(plain, kernels=COMPILED_PLAN)
    return [*known,
            Known("the same, its layers compiled", 96 / 35.8, _seconds(both, compiled, _packed(workload("finetuning")))),
            Known("pretraining, layers compiled", 256 / 180, _seconds(connector, compiled, _packed(workload("pretraining"))))]


def _run(trained: tuple[str, ...]) -> Run:
    return Run("known", "sft", model_of(SHAPES["1.5b"]), Train(trainable=trained))


def _seconds(run: Run, place: Place, rows: Sequence[Row], with_encoder: bool = True) -> float:
    """One replica on one GPU, without pipeline."""
    total, on, m = 0.0, place.machine, run.model.language
    for row in rows:
        costs = row_costs(run, place, row)
        part = costs.between(range(m.layers)) + costs.after + (costs.before if with_encoder else costs.embedding)
        total += _both(part + _theirs(place, row), on)
    layer = m.hidden * (2 * m.heads + 2 * m.kv_heads) * m.head_dim + 3 * m.hidden * m.ffn
    trained = m.layers * layer + 2 * m.vocab * m.hidden if "language" in run.train.trainable else 0
    return total + on.moved((on.clear_bytes + on.update_bytes) * trained) + on.step_s


def _theirs(place: Place, row: Row) -> Pass:
    """What those programs move that this project's code does not: keys and values copied to as many heads as the queries have; of
    cross-entropy, which they did not compile, an fp32 copy of the logits (3 numbers of bf16) and its log-softmax (4), backward zeros (2),
    the log-softmax's (6) and the copy's (3)."""
    copied = place.moves(2 * row.tokens * (LANGUAGE.heads + LANGUAGE.kv_heads) * LANGUAGE.head_dim, 2).scaled(LANGUAGE.layers)
    forward, backward = CROSS_ENTROPY[place.compiled]
    logits = row.supervised * LANGUAGE.vocab
    return Pass(copied + place.moves((7 - forward) * logits, 0), copied + place.moves((11 - backward) * logits, 0))


def _both(part: Pass, on: Machine) -> float:
    return part.forward.seconds(on) + part.backward.seconds(on)


def workload(name: str) -> list[SampleWork]:
    """Samples of the measurement, without tags."""
    return in_sequence(pieces(name, SHAPES["1.5b"]), SHAPES["1.5b"])


def _packed(samples: Sequence[SampleWork]) -> list[Row]:
    rows = pack([Cost(sample.tokens, sample.tiles) for sample in samples], 8192, 1000)
    return [row_of([samples[i] for i in row], 8192) for row in rows]


def table_3(overrides: Sequence[str] = ()) -> dict[str, Known]:
    """Every sample a picture of 6 tiles and thumbnail with text to the end of its sequence, one sample a row, 16 rows a replica."""
    found = {}
    for name, (tokens, milliseconds) in TABLE_3.items():
        extra = [word for word in overrides if name != "nvlm_d" or "cross_attention" not in word]
        run = compose([f"recipe={name}_34b", "stage=sft", "train.global_batch=256", "data.packing=false", "layout.pipeline=1",
                       "layout.first_stage_layers=null", f"data.max_tokens={tokens}", f"data.pack_tokens={tokens}", *extra])[0]
        samples = assumed_samples(run, Assume(text_share=0.0, tiles=7, text_tokens=tokens, learned=0.5), run.train.global_batch)
        plan = Plan(run, bench_of(run, Cluster(GPUS["h100"], 16, 8), samples))
        found[name] = Known(name, milliseconds / 1e3, plan.time.seconds)
    return found


def ratio(found: dict[str, Known], name: str) -> tuple[float, float]:
    """(measured, predicted): how many times as fast as NVLM-D."""
    return found["nvlm_d"].measured / found[name].measured, found["nvlm_d"].predicted / found[name].predicted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    options = parser.parse_args()
    result: dict = {"linears": [], "steps": [], "table_3": {}}
    print("linear, 8,192 tokens: in, out, TFLOP/s measured, predicted")
    for (wide, high), both in LINEARS.items():
        for dtype, measured in zip(("bf16", "fp8"), both, strict=True):
            predicted = linear_tflops(wide, high, fp8=dtype == "fp8")
            result["linears"].append({"in": wide, "out": high, "dtype": dtype, "measured": measured, "predicted": predicted})
            print(f"  {wide:>6} {high:>6} {dtype:<4} {measured:>6} {predicted:>6.0f} {predicted / measured - 1:>+6.0%}")
    print("steps: seconds measured, predicted")
    for known in steps():
        result["steps"].append({"name": known.name, "measured": known.measured, "predicted": known.predicted})
        print(f"  {known.name:<52}{known.measured:>8.3f}{known.predicted:>8.3f}{known.off:>+6.0%}")
    for what, words in OPEN.items():
        found = table_3(words)
        print(f"Table 3, {what}: seconds measured, predicted; times as fast as D, measured, predicted")
        for name, known in found.items():
            print(f"  {name:<8}{known.measured:>8.2f}{known.predicted:>8.2f}{ratio(found, name)[0]:>8.2f}{ratio(found, name)[1]:>8.2f}")
        result["table_3"][what] = {name: {"measured": known.measured, "predicted": known.predicted} for name, known in found.items()}
    tell(result, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
