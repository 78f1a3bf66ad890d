"""The verbs of runs: train, eval, generate, compare, data, show-config. Each imports what it needs when it runs."""

from pathlib import Path

from nvlm_train.config.request import Draw, Request, take_comparison, take_request
from nvlm_train.config.schema import Run
from nvlm_train.errors import ConfigError
from nvlm_train.geometry import with_thumbnail
from nvlm_train.redaction import redact_text
from nvlm_train.verbs.base import (
    CHECKPOINT,
    SETTINGS,
    Verb,
    benchmark_named,
    compose_runs,
    from_checkpoint,
    leave_job,
    log_to_stderr,
    runs_and_request,
)


def _train(words: list[str], flags: set[str]) -> None:
    request, overrides = take_request(words)
    if request != Request():
        raise ConfigError("checkpoint=, image=, prompt= and eval.… belong to eval and generate; to go on with a run use "
                          "run.resume=…, to start from another checkpoint init=…")
    try:
        runs = compose_runs(overrides)
    except ConfigError:
        _refuse_restart(overrides)
        raise
    if "--dry-run" in flags:
        print("\n\n".join(_summary(run) for run in runs))
        return
    log_to_stderr()
    from nvlm_train.training.stages import train_all
    train_all(runs)
    leave_job()


def _refuse_restart(overrides: list[str]) -> None:
    """A batch script looks into the run directory for what to do next; here it is known only if it was named."""
    if run_dir := next((word.removeprefix("run.dir=") for word in overrides if word.startswith("run.dir=")), None):
        from nvlm_train.training.status import refuse_restart
        refuse_restart(Path(run_dir))


def _eval(words: list[str], flags: set[str]) -> None:
    runs, request = runs_and_request(words)
    if request.generate != Draw():
        raise ConfigError("generate.… belongs to generate: benchmarks are answered with the likeliest token each time")
    if request.eval.out is not None and request.benchmark is None:
        raise ConfigError("eval.out= is for a benchmark's answers: add eval=NAME")
    log_to_stderr()
    if request.benchmark is None:
        from nvlm_train.evaluation.commands import eval_command
        eval_command(runs, request.options(json="--json" in flags))
    else:
        benchmark = benchmark_named(request.benchmark)
        from nvlm_train.evaluation.benchmark.command import benchmark_command
        longest = request.eval.max_new_tokens or benchmark.max_new_tokens
        benchmark_command(runs, benchmark, request.options(json="--json" in flags, max_new_tokens=longest))
    leave_job()


def _generate(words: list[str], flags: set[str]) -> None:
    runs, request = runs_and_request(words)
    if request.prompt is None:
        raise ConfigError("no question given: add prompt=\"…\"")
    if missing := [path for path in request.image if not Path(path).is_file()]:
        raise ConfigError([f"image={path}: there is no such file" for path in missing])
    log_to_stderr()
    from nvlm_train.evaluation.generate_command import generate_command
    generate_command(runs, request.options(json="--json" in flags, **vars(request.generate)))
    leave_job()


def _compare(words: list[str], flags: set[str]) -> int:
    asked, shared = take_comparison(words)
    log_to_stderr()
    from nvlm_train.comparison.command import compare_command
    return compare_command(asked, shared, dry_run="--dry-run" in flags)


def _data(words: list[str], flags: set[str]) -> int:
    if words[:1] == ["cache-features"]:
        if flags:
            raise ConfigError(f"{' '.join(sorted(flags))}: cache-features has no flags")
        return _cache_features(words[1:])
    if len(words) != 2 or words[0] != "audit":
        raise ConfigError("nvlm data audit RUN and nvlm data cache-features recipe=… stage=… are the forms, got: "
                          f"nvlm data {' '.join(words)}".rstrip())
    from nvlm_train.training.audit import audit_command
    return audit_command(Path(words[1]), as_json="--json" in flags)


def _cache_features(words: list[str]) -> int:
    runs = compose_runs(words)
    log_to_stderr()
    from nvlm_train.training.cache_features import cache_features_command
    cache_features_command(runs)
    leave_job()
    return 0


def _show_config(words: list[str], flags: set[str]) -> None:
    from nvlm_train.config.compose import to_json, to_yaml
    request, overrides = take_request(words)
    runs = from_checkpoint(request.checkpoint, overrides) if request.checkpoint else compose_runs(overrides)
    print(to_json(runs) if "--json" in flags else to_yaml(runs).rstrip())


def _summary(run: Run) -> str:
    train, data, layout = run.train, run.data, run.layout
    tiles = with_thumbnail(data.max_tiles, data.thumbnail)
    model_parallel = layout.tensor * layout.pipeline * layout.context
    context = f", context {layout.context}" if layout.context > 1 else ""
    sources = [f"{name} ({source.weight:g}) {source.path}" for name, source in data.blend.items()]
    rows = {
        "model": f"{run.model.architecture}, trains {', '.join(train.trainable)}",
        "steps": f"{train.steps:,} of {train.global_batch:,} samples: {train.steps * train.global_batch:,} samples",
        "rate": f"{train.lr:g} to {train.min_lr:g}, {train.schedule}, {train.warmup_steps:,} steps of warm-up",
        "samples": f"up to {data.max_tokens:,} tokens, {tiles} tiles an image, tags {run.model.tags.kind}, format {data.format}",
        "rows": f"{data.pack_tokens:,} tokens, {data.pack_tiles} tiles{'' if data.packing else ', one sample each'}",
        "layout": f"tensor {layout.tensor}, pipeline {layout.pipeline}{context}: a multiple of {model_parallel} processes, {run.engine.name}",
        "data": "\n           ".join(sources),
        "writes": f"{run.run.dir}, resume {run.run.resume}",
    }
    return f"{run.recipe}, {run.stage}\n" + "\n".join(f"  {name:<8} {redact_text(text)}" for name, text in rows.items())


VERBS = {
    "train": Verb(_train, "train one stage or both", f"Trains, or goes on where the run directory left off.\n\n{SETTINGS}\n\n"
                  "profile=5-7 records these steps and says where their time goes (docs/performance.md).\n"
                  "--dry-run says what would run, and stops.", ("--dry-run",)),
    "eval": Verb(_eval, "score a checkpoint", f"{CHECKPOINT}\neval.data=FOLDER eval.limit=N eval.max_new_tokens=N\n\n"
                 "eval=NAME asks a public benchmark (docs/benchmarks.md lists them), whose files are in eval.data=FOLDER, or come with\n"
                 "a Python package; the answers and the score go to the run directory, or to eval.out=FOLDER.", ("--json",)),
    "compare": Verb(_compare, "train several designs alike, and put them on one page",
                    "designs=RECIPE,RECIPE,… names designs; designs.NAME=\"KEY=VALUE …\" makes one of your own, for example\n"
                    "  nvlm compare designs=nvlm_d_tiny designs.no_tags=\"recipe=nvlm_d_tiny stages.sft.model.tags.kind=none\"\n"
                    "seeds=1,2,3 trains each under several seeds; processes=N gives each training N processes; run.dir=FOLDER\n"
                    "(default runs/compare) holds everything; eval.tasks.NAME=FOLDER names questions (default: the runs'\n"
                    "data.validation), eval.limit=N eval.max_new_tokens=N. Every other word is a setting of every design.\n"
                    "Started again, it goes on: what is trained and asked already is left alone. What must be the same in all\n"
                    "designs, and how to read the page: docs/comparison.md.\n\n--dry-run says what would be trained, and stops.",
                    ("--dry-run",)),
    "data": Verb(_data, "prove what a run was trained on, cache what a frozen encoder sees",
                 "nvlm data audit RUN compares the samples that a run recorded with its plan, slot by slot: each sample used exactly\n"
                 "as often as planned, whatever was killed and resumed in between. Exit code 1 if anything differs.\n\n"
                 "nvlm data cache-features recipe=NAME stage=STAGE key=value … stores what the stage's frozen vision encoder\n"
                 "makes of every picture beside the shards, under the settings that nvlm train would get; training then reads\n"
                 "it and gets the same losses (docs/features.md). Under torchrun the processes share out the shards.\n\n"
                 "Preparing data is another program: python -m data_prep", ("--json",)),
    "generate": Verb(_generate, "ask a checkpoint about pictures",
                     f"{CHECKPOINT}\nimage=FILE (several times for several pictures) prompt=\"…\" eval.max_new_tokens=N\n"
                     "generate.temperature=T generate.top_p=P generate.seed=N draw the answer; without them it is the likeliest.",
                     ("--json",)),
    "show-config": Verb(_show_config, "print the resolved configuration", f"{SETTINGS}\ncheckpoint=FOLDER shows that of a run.",
                        ("--json",)),
}
