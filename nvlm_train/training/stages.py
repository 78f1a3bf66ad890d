"""All stages of a job, one after the other: what `nvlm train` does.

Each stage has its own engine (layouts may differ), data, checkpoints and hooks; see `_train_stage` for the order of things.
"""

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from nvlm_train.config.dump import redact, runs_from_file, to_yaml
from nvlm_train.config.rules import check_world
from nvlm_train.config.schema import Run
from nvlm_train.config.split import row_multiple
from nvlm_train.data.encode import Encoder
from nvlm_train.data.loader import build_loader, validation_rows
from nvlm_train.data.tokenizer import Tokenizer, load_tokenizer
from nvlm_train.engine.agree import on_every_rank, on_main
from nvlm_train.engine.checkpoint import VALIDATION_LOSS, CheckpointStore, SaveFacts
from nvlm_train.engine.interface import Engine
from nvlm_train.engine.manifest import fingerprint
from nvlm_train.errors import ConfigError, DataError, TrainingError
from nvlm_train.health.heart import SETUP, Heart
from nvlm_train.health.member import Member
from nvlm_train.model.accounting import peak_flops
from nvlm_train.training.backbones import load_start
from nvlm_train.training.builtin import with_builtin_data
from nvlm_train.training.evaluating import Around, Evaluation
from nvlm_train.training.examples import Examples
from nvlm_train.training.features import StageFeatures, find_features
from nvlm_train.training.hooks import Checkpoints, RefusedBudget, Report, Validation, saves_at
from nvlm_train.training.logs import Logs, write_atomically
from nvlm_train.training.loop import Hook, train
from nvlm_train.training.metrics import Recorder, Sink
from nvlm_train.training.preemption import Told, to_stderr
from nvlm_train.training.profile.hook import Profile
from nvlm_train.training.report import write_report
from nvlm_train.training.run_dir import STAGES, InUse, claim, cut_after, scores_aside, write_segments
from nvlm_train.training.start import Start, checkpoints_of, resume_point, start_of
from nvlm_train.training.status import StatusFile, refuse_restart, write_failure
from nvlm_train.training.telemetry import telemetry
from nvlm_train.training.time_limit import time_limit
from nvlm_train.training.view import View, guarded, view_of

# In a checkpoint's manifest: what its cursor counts in (data/segments.py), and what was refused up to it.
DATA_SEGMENTS, REFUSED = "segments", "refused"

_ENGINES = {"megatron": ("nvlm_train.engine.megatron", "MegatronEngine"),
            "deepspeed": ("nvlm_train.engine.deepspeed", "DeepSpeedEngine")}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A stage about to be trained, as this rank has it. runs: all of the job; status: the main rank's."""

    runs: Sequence[Run]
    run: Run
    start: Start
    engine: Engine
    tokenizer: Tokenizer
    store: CheckpointStore
    features: StageFeatures
    status: StatusFile | None
    heart: Heart


def build_engine(run: Run) -> Engine:
    """The engine that `run.engine` names. Imported here because each takes seconds to load, and DeepSpeed is optional."""
    module, engine = _ENGINES[run.engine.name]
    return getattr(import_module(module), engine)(run)


def train_all(runs: list[Run], engine_of: Callable[[Run], Engine] = build_engine) -> None:
    """Train every stage of `runs`, in order, each from where it left off. Called on every rank with the same runs.

    Raises Preempted when told to stop (everything saved), and the errors of what it is made of: ConfigError, DataError,
    CheckpointError, TrainingError, and JobError where another rank has ended the job.
    """
    with ExitStack() as held:
        member = held.enter_context(Member(runs[0].run))
        status = _take(runs, held)
        held.enter_context(member.naming())     # inside the status file, which thereby hears which rank ended the job, and why
        member.begin(runs, partial(write_failure, Path(runs[0].run.dir)))
        first, start = resume_point(runs) or (0, start_of(runs[0], None))
        if status:
            status.begin(runs[first].stage, start.step)
        for index in range(first, len(runs)):
            run = runs[index]
            if index > first:
                start = start_of(run, runs[index - 1])
            if start.step >= run.train.steps:
                log.info("%s: all %d steps are done (%s)", run.stage, run.train.steps, start.checkpoint)
            else:
                _train_stage(runs, run, start, status, member, engine_of)


def _take(runs: Sequence[Run], held: ExitStack) -> StatusFile | None:
    """The main rank's status file, once the processes fit the layouts and the run directory is this job's."""
    run_dir, settings = Path(runs[0].run.dir), runs[0].run
    try:
        for run in runs:
            check_world(run, int(os.environ.get("WORLD_SIZE", "1")))
        if os.environ.get("RANK", "0") != "0":
            return None
        held.callback(claim(run_dir, settings.resume).release)
    except (ConfigError, InUse):
        refuse_restart(run_dir)
        raise
    return held.enter_context(StatusFile(run_dir, settings.max_restarts))


def _train_stage(runs: Sequence[Run], run: Run, start: Start, status: StatusFile | None, member: Member,
                 engine_of: Callable[[Run], Engine]) -> None:
    member.heart.enter(run.stage, start.step, SETUP)
    with closing(engine_of(run)) as engine:
        _agree(engine, start)
        tokenizer = load_tokenizer(run.model.tokenizer, run.data.template)
        run = with_builtin_data(run, engine)
        store = CheckpointStore(checkpoints_of(run), run.run.keep_last)
        store.preflight(engine)
        log.info(start.told(run))
        load_start(run, start, engine, tokenizer)
        stage = Stage(runs, run, start, engine, tokenizer, store, find_features(run, tokenizer, engine), status, member.heart)
        _rewind(stage)
        with _open_data(stage) as loader:
            segments = loader.plan.segments if loader is not None else ()
            on_main(engine, "recording the blend", lambda: write_segments(Path(run.run.dir), run.stage, segments), TrainingError)
            view = view_of(runs, run, start.step) if engine.is_main else None
            told = Told(view.stopping if view else to_stderr)
            hooks = _hooks(stage, segments, view, told)
            train(run, engine, engine.shared(loader), hooks, start.step, told, stage.heart, member.naming())


def _open_data(stage: Stage) -> AbstractContextManager:
    """The loader on ranks that read, nothing on the others. Data that cannot be opened stops every rank."""
    run, start, engine, opened = stage.run, stage.start, stage.engine, []

    def open_it() -> None:
        if engine.reads_data:
            opened.append(build_loader(
                run, stage.tokenizer, engine.data_rank, engine.data_size, start.cursor, row_multiple(run.layout),
                history=start.extra.get(DATA_SEGMENTS, ()), features=stage.features.blend, pinned=engine.device.type == "cuda"))

    on_every_rank(engine, "opening the data", open_it, DataError)
    return opened[0] if opened else nullcontext()


def _agree(engine: Engine, start: Start) -> None:
    """Every rank has looked for checkpoints by itself: if they saw different ones, the run directory is not shared."""
    seen = engine.gather_objects((start.step, str(start.checkpoint)))
    if len(set(seen)) > 1:
        first = next(rank for rank, other in enumerate(seen) if other != seen[0])
        raise TrainingError(
            f"the ranks do not see the same checkpoints: rank 0 sees {seen[0][1]}, rank {first} sees {seen[first][1]}. "
            "run.dir must lie on storage that all nodes share"
        )


def _rewind(stage: Stage) -> None:
    """Forget what came after the starting point: rows of the logs are cut off, later checkpoints are put aside."""
    run, engine, step, run_dir = stage.run, stage.engine, stage.start.step, Path(stage.run.run.dir)
    stage.store.rewind_to(engine, step)
    for later in STAGES[STAGES.index(run.stage) + 1:]:
        CheckpointStore(checkpoints_of(replace(run, stage=later)), run.run.keep_last).rewind_to(engine, -1)

    def write() -> None:
        if cut := cut_after(run_dir, run.stage, step):
            log.info("%s: %d rows of the logs were later than step %d and are cut off", run.stage, cut, step)
        if aside := scores_aside(run_dir, run.stage, step):
            log.info("%s: the scores of %d later steps are put aside in %s", run.stage, aside, run_dir / "benchmarks")
        write_atomically(run_dir / "config.yaml", to_yaml(_with_other_stages(stage.runs, run_dir / "config.yaml")).encode("utf-8"))

    on_main(engine, f"preparing {run_dir}", write, TrainingError)


def _with_other_stages(runs: Sequence[Run], config: Path) -> list[Run]:
    """The job's stages, and those of earlier jobs in this run directory."""
    try:
        earlier = runs_from_file(config) if config.exists() else []
    except ConfigError as error:
        log.warning("%s of an earlier job is replaced: %s", config, error)
        earlier = []
    stages = {run.stage: run for run in (*earlier, *runs)}
    return [stages[name] for name in STAGES if name in stages]


def _hooks(stage: Stage, segments: Sequence[Mapping], view: View | None, told: Told) -> list[Hook]:
    """In the order in which they act on a step: figures first, then validation, then the checkpoint that vouches for both. A profile
    comes before all, since it takes the time of a step alone."""
    run, start, engine, tokenizer, status = stage.run, stage.start, stage.engine, stage.tokenizer, stage.status
    run_dir = Path(run.run.dir)
    logs = Logs(run_dir) if engine.is_main else None
    hosts = engine.gather_objects(socket.gethostname())
    sinks: list[Sink] = [logs, guarded(view), *telemetry(stage.runs, run, run_dir, start.step, hosts)] if logs and view else []
    name = _device_name(run)
    budget = RefusedBudget(run, start.extra.get(REFUSED))
    hooks: list[Hook] = [Profile(run, engine, name, peak_flops(name))] if run.run.profile else []
    hooks.append(Recorder(run, engine, sinks, [budget], partial(saves_at, run), hosts, peak_flops(name)))
    validation = None
    if run.data.validation:
        rows = validation_rows(run, tokenizer, engine.data_rank, engine.data_size, run.run.eval_batches, row_multiple(run.layout),
                               stage.features.validation)
        validation = Validation(run, engine, rows, sinks)
        hooks.append(validation)

    facts = SaveFacts(run.stage, redact(asdict(run)), fingerprint(run, tokenizer.fingerprint), cursor=0)

    def save(step: int, cursor: int) -> None:
        extra = {DATA_SEGMENTS: list(segments), REFUSED: budget.state, VALIDATION_LOSS: validation.loss_at(step) if validation else None}
        stage.store.save(engine, replace(facts, cursor=cursor, extra=extra), step, run.run.async_save)

    def saved(step: int, seconds: float) -> None:
        if status:
            status.saved(run.stage, step, round(seconds, 3))
        for sink in sinks:
            sink.saved(run.stage, step, seconds)

    checkpoints = Checkpoints(run, save, stage.store.finish, logs.sync if logs else lambda: None, start.cursor, saved)
    hooks.append(checkpoints)
    if run.evaluate.benchmarks:
        around = Around(start.told(run), lambda step: stage.heart.enter(run.stage, step, Evaluation.__name__), lambda: told.once,
                        checkpoints.on_end, status.alarm if status else lambda text: None)
        hooks.append(Evaluation(run, engine, Encoder(run.model, run.data, tokenizer), sinks, around))
    if run.run.examples and run.data.validation:
        hooks.append(Examples(run, engine, tokenizer, sinks))
    if engine.is_main and (limit := time_limit(run_dir, run.stage, os.environ)):
        hooks.append(limit)
    if engine.is_main:
        hooks.append(Report(write_report, run_dir, run.run.save_every or run.run.eval_every))
    return hooks


def _device_name(run: Run) -> str | None:
    """The accelerator's name as its driver gives it; None when training on the CPU."""
    on_gpu = run.run.device != "cpu" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_gpu else None
