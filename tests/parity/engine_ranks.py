"""Run under torchrun by test_engines.py: the same steps with Megatron and with DeepSpeed, in one job, and checkpoints handed over.

    engine_ranks.py OUT.json curves RECIPE[,RECIPE...] STEPS ENGINE[,ENGINE...]
    engine_ranks.py OUT.json mixed CASE[;CASE...] ENGINE[,ENGINE...]
    engine_ranks.py OUT.json order CASE[;CASE...]
    engine_ranks.py OUT.json skipped ENGINE[,ENGINE...]
    engine_ranks.py OUT.json seen ENGINE[,ENGINE...]
    engine_ranks.py OUT.json written FOLDER ENGINE[,ENGINE...]      trains two steps, saves, is asked, trains two more
    engine_ranks.py OUT.json read FOLDER WRITER>READER[,...]        loads what `written` left, trains the last two steps

Several actions may follow each other, divided by `--`. ENGINE: a name of ENGINES.
"""

import hashlib
import itertools
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from nvlm_train.config.compose import compose
from nvlm_train.contracts import StepBatch
from nvlm_train.data.loader import build_loader
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.checkpoint import CheckpointStore, SaveFacts, load
from nvlm_train.engine.interface import Engine
from nvlm_train.engine.stored import StoredWeights
from nvlm_train.geometry import geometry_of
from nvlm_train.model.nvlm import to_device
from nvlm_train.parallel import groups
from nvlm_train.training.builtin import with_builtin_data
from nvlm_train.training.stages import build_engine
from tests.faults.mixed_rows_ranks import CASES, OPEN, reports
from tests.model.rows import KINDS as ROW_KINDS
from tests.model.rows import T, make_row

ENGINES = {"megatron": [], **{f"zero{n}": ["engine=deepspeed", f"engine.zero={n}"] for n in (1, 2, 3)}}
ENGINES |= {f"{name} offload": [*ENGINES[name], "engine.offload=optimizer"] for name in ("zero1", "zero2", "zero3")}
ENGINES |= {f"{name} recompute": [*ENGINES[name], "model.recompute=full"] for name in ("zero2", "zero3")}
ENGINES |= {f"{name} bf16": [*ENGINES[name], "model.dtype=bf16"] for name in ("megatron", "zero1", "zero2", "zero3")}
ENGINES |= {f"{name} tied": [*ENGINES[name], "model.language.tie_embeddings=true"] for name in ("megatron", "zero3")}
UNFROZEN = "train.trainable=[vision,connector,language]"
ENGINES |= {f"{name} unfrozen": [*ENGINES[name], UNFROZEN] for name in ("megatron", "zero3")}

# As in train_ranks.py, which gives the reason.
RATES = ("train.global_batch=8", "train.warmup_steps=0", "train.lr=5e-4", "train.min_lr=0")
# X has every kind of parameter: gates, vectors without decay, cross-attention; and connector and language learn at different rates.
TRAINED = ("recipe=nvlm_x_tiny", "stage=sft", f"data.pack_tokens={T}", OPEN, "train.lr_multipliers.connector=0.5")
KINDS = (("text", "text", "image", "image"), ("image", "mixed", "mixed", "text"), ("image", "text", "image", "mixed"),
         ("mixed", "image", "empty", "empty"))


def curves(recipes: str, steps: str, engines: str) -> dict:
    """Engine -> recipe -> stage -> [loss, gradient norm] of each step on the stage's own data."""
    found: dict = {}
    for name, recipe in itertools.product(engines.split(","), recipes.split(",")):
        gates = [OPEN] if recipe[:6] != "nvlm_d" else []
        for run in compose([f"recipe={recipe}", f"train.steps={steps}", *RATES, *gates, *ENGINES[name]]):
            engine = build_engine(run)
            run = with_builtin_data(run, engine)
            loader = build_loader(run, load_tokenizer(run.model.tokenizer), engine.data_rank, engine.data_size)
            reported = [engine.train_step(batch, run.train.lr) for batch in engine.shared(loader)]
            found.setdefault(name, {}).setdefault(recipe, {})[run.stage] = [[one.loss, one.grad_norm] for one in reported]
            loader.close()
            engine.close()
    return found


def mixed(cases: str, engines: str) -> dict:
    """Engine -> case -> what steps report whose ranks have different kinds of rows (see mixed_rows_ranks.py)."""
    return {name: {case: reports(*CASES[case], ENGINES[name]) for case in cases.split(";")} for name in engines.split(",")}


def order(cases: str) -> dict:
    """Case, frozen and unfrozen -> kind of row -> parameters in the order in which their gradients come."""
    found: dict = {}
    for case, trained in itertools.product(cases.split(";"), (None, UNFROZEN)):
        recipe, new, settings = CASES[case]
        words = [f"recipe={recipe}_tiny", "stage=sft", f"data.pack_tokens={T}", trained or f"train.trainable={new}", *settings]
        engine = build_engine(compose(words)[0])
        [stage] = engine.stages()
        stage.use_every_weight()
        fired: list[str] = []
        for name, param in stage.named_parameters():
            if param.requires_grad:
                param.register_post_accumulate_grad_hook(lambda _, name=name, fired=fired: fired.append(name))
        by_kind = found.setdefault(f"{case}, {'unfrozen' if trained else 'frozen'}", {})
        for kind in ROW_KINDS:
            row = make_row(recipe if recipe.startswith("nvlm") else "nvlm_x", 1, kind)
            stage(to_device(row, engine.device, geometry_of(engine.run.model).tokens)).sum().backward()
            by_kind[kind] = list(fired)
            fired.clear()
        engine.close()
    return found


def _engine(name: str) -> Engine:
    return build_engine(compose([*TRAINED, *ENGINES[name]])[0])


def _step(engine: Engine, number: int, spoiled: float | None = None):
    """Step `number` of KINDS. spoiled: instead of the weight of every supervised token."""
    rows = [make_row("nvlm_x", 10 * number + i, kind) for i, kind in enumerate(KINDS[number])]
    if spoiled is not None:
        rows = [replace(row, loss_weights_T=torch.where(row.loss_weights_T > 0, spoiled, 0.0)) for row in rows]
    each = len(rows) // engine.data_size
    report = engine.train_step(StepBatch(number, rows[each * engine.data_rank:each * (engine.data_rank + 1)], (), 0), 1e-3)
    return [report.loss, report.grad_norm, report.skipped]


def skipped(engines: str) -> dict:
    """Engine -> two steps, with and without steps between them that must change nothing."""
    found = {}
    for name in engines.split(","):
        for label, spoils in (("plain", ()), ("spoiled", (float("inf"), 0.0, float("nan")))):
            engine = _engine(name)
            steps = [_step(engine, 0)] + [_step(engine, 1, spoiled) for spoiled in spoils] + [_step(engine, 2)]
            found.setdefault(name, {})[label] = steps
            engine.close()
    return found


def seen(engines: str) -> dict:
    """Engine -> what names the encoder's weights, and a hash of what it makes of tiles."""
    found = {}
    for name in engines.split(","):
        engine = _engine(name)
        features = engine.see(make_row("nvlm_x", 1))
        found[name] = [engine.encoder_fingerprint(), hashlib.sha256(features.float().numpy().tobytes()).hexdigest()]
        engine.close()
    return found


def written(folder: str, engines: str) -> dict:
    found = {}
    for name in engines.split(","):
        engine = _engine(name)
        before = [_step(engine, number) for number in (0, 1)]
        store = CheckpointStore(Path(folder) / name / "checkpoints" / "sft", keep_last=1)
        run = compose([*TRAINED, *ENGINES[name]])[0]
        store.save(engine, SaveFacts("sft", asdict(run), {}, cursor=0), 2)
        engine.evaluate([make_row("nvlm_x", 7 + engine.data_rank, "text"), make_row("nvlm_x", 9)])
        engine.logits(make_row("nvlm_x", 11, KINDS[0][2 * engine.data_rank]), torch.tensor([3, 5]))
        found[name] = before + [_step(engine, number) for number in (2, 3)]
        engine.close()
    return found


def read(folder: str, pairs: str) -> dict:
    """Pair -> the steps after loading, and how many of a reader's weights are not, bit by bit, those in the writer's files."""
    found = {}
    for pair in pairs.split(","):
        writer, reader = pair.split(">")
        path = Path(folder) / writer / "checkpoints" / "sft" / "step-00000002"
        engine = _engine(reader)
        load(path, engine, {})
        found[pair] = {"weights": _compared(engine, StoredWeights(path)), "steps": [_step(engine, number) for number in (2, 3)]}
        engine.close()
    return found


def _compared(engine: Engine, stored: StoredWeights) -> list[int]:
    """[compared, different] over all ranks; of SwiGLU's halves, which are stored one by one, none."""
    model = engine.sharded_state(loading=False, optimizer=False)["model"]
    held = {one.key: one.data for one in model.values() if hasattr(one, "global_shape") and isinstance(one.data, torch.Tensor)}
    same = [torch.equal(stored.tensor(key), value.detach().cpu()) for key, value in held.items()]
    return [sum(numbers) for numbers in zip(*engine.gather_objects((len(same), same.count(False))), strict=True)]


ACTIONS = {"curves": curves, "mixed": mixed, "order": order, "skipped": skipped, "seen": seen, "written": written, "read": read}


def main() -> None:
    out, *words = sys.argv[1:]
    found: dict = {}
    for divided, action in itertools.groupby(words, lambda word: word == "--"):
        if not divided:
            name, *arguments = action
            found.setdefault(name, {}).update(ACTIONS[name](*arguments))
    if torch.distributed.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    groups.stop()


if __name__ == "__main__":
    main()
