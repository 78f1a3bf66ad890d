"""The door: `nvlm VERB [--json|--dry-run|--help] key=value …`.

Settings are `key=value` words, flags are dashed. Each verb imports what it needs when it runs: torch and Megatron take
seconds to load, and a typo should not. Exit codes: 0 done, 2 the configuration or command line is wrong, 1 anything else, save
for errors that bring their own (75: stopped as told, everything saved; start again to go on).
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm_train import __version__
from nvlm_train.config import rules
from nvlm_train.config.request import Request, take_comparison, take_request
from nvlm_train.config.schema import Run
from nvlm_train.config.typed import suggestion
from nvlm_train.errors import ConfigError, NvlmError

USAGE = """\
nvlm {version}: train your own NVLM

usage: nvlm VERB [FLAG …] key=value …

{verbs}

  nvlm train recipe=nvlm_d_tiny                          both stages, on built-in data
  nvlm train recipe=nvlm_d_tiny stage=sft train.lr=5e-4  one stage, one setting changed
  nvlm compare designs=nvlm_d_tiny,nvlm_x_tiny,nvlm_h_tiny
  nvlm generate checkpoint=runs/nvlm_d_tiny image=cat.png prompt="What is this?"

Help on one verb: nvlm VERB --help. Under several processes: torchrun … -m nvlm_train VERB …"""


@dataclass(frozen=True)
class Verb:
    """One word of the command line: what it does, the flags it knows, and how to call it."""

    run: Callable[[list[str], set[str]], int | None]
    summary: str
    help: str
    flags: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Errors meant for people are printed without a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(argv)
    except ConfigError as error:
        # The same on every rank of a job: said once.
        if _rank() == 0:
            _complain(error)
        return 2
    except NvlmError as error:
        _complain(error)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `nvlm show-config … | head`: nobody is reading any more. Keeps the interpreter's last flush quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("--help", "-h", "help"):
        listing = "\n".join(f"  {name:<12} {verb.summary}" for name, verb in VERBS.items())
        print(USAGE.format(version=__version__, verbs=listing))
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    name, words = argv[0], argv[1:]
    if name not in VERBS:
        raise ConfigError(f"{name}: no such verb{suggestion(name, list(VERBS))} (known: {', '.join(VERBS)})")
    verb = VERBS[name]
    flags = {word for word in words if word.startswith("-")}
    if flags & {"--help", "-h"}:
        print(f"nvlm {name}{''.join(f' [{flag}]' for flag in verb.flags)} key=value …\n\n{verb.help}")
        return 0
    if unknown := sorted(flags - set(verb.flags)):
        raise ConfigError([f"{flag}: {name} has no such flag{suggestion(flag, list(verb.flags))}; settings are key=value"
                           for flag in unknown])
    return verb.run([word for word in words if not word.startswith("-")], flags) or 0


def _train(words: list[str], flags: set[str]) -> None:
    request, overrides = take_request(words)
    if request != Request():
        raise ConfigError("checkpoint=, image=, prompt= and eval.… belong to eval and generate; to go on with a run use "
                          "run.resume=…, to start from another checkpoint init=…")
    runs = _compose(overrides)
    if "--dry-run" in flags:
        print("\n\n".join(_summary(run) for run in runs))
        return
    _log_to_stderr()
    from nvlm_train.training.stages import train_all
    train_all(runs)
    _leave_job()


def _eval(words: list[str], flags: set[str]) -> None:
    runs, request = _runs_and_request(words)
    _log_to_stderr()
    from nvlm_train.evaluation.commands import eval_command
    eval_command(runs, request.options(json="--json" in flags))
    _leave_job()


def _generate(words: list[str], flags: set[str]) -> None:
    runs, request = _runs_and_request(words)
    if request.prompt is None:
        raise ConfigError("no question given: add prompt=\"…\"")
    if missing := [path for path in request.image if not Path(path).is_file()]:
        raise ConfigError([f"image={path}: there is no such file" for path in missing])
    _log_to_stderr()
    from nvlm_train.evaluation.commands import generate_command
    generate_command(runs, request.options(json="--json" in flags))
    _leave_job()


def _compare(words: list[str], flags: set[str]) -> int:
    asked, shared = take_comparison(words)
    _log_to_stderr()
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
    runs = _compose(words)
    _log_to_stderr()
    from nvlm_train.training.cache_features import cache_features_command
    cache_features_command(runs)
    _leave_job()
    return 0


def _leave_job() -> None:
    """Only when all went well: after an error, leaving would wait for ranks that the launcher is about to end."""
    from nvlm_train.parallel.groups import stop
    stop()


def _show_config(words: list[str], flags: set[str]) -> None:
    from nvlm_train.config.compose import to_json, to_yaml
    request, overrides = take_request(words)
    runs = _from_checkpoint(request.checkpoint, overrides) if request.checkpoint else _compose(overrides)
    print(to_json(runs) if "--json" in flags else to_yaml(runs).rstrip())


def _doctor(words: list[str], flags: set[str]) -> int:
    if words:
        raise ConfigError(f"nvlm doctor takes no settings, got {' '.join(words)}")
    from nvlm_train import doctor
    report = doctor.examine()
    print(doctor.as_json(report) if "--json" in flags else doctor.as_text(report))
    return 0 if report.usable else 1


def _compose(overrides: list[str]) -> list[Run]:
    """Hydra is imported here: it is not needed for help, nor for a verb that does not exist."""
    from nvlm_train.config.compose import compose
    runs = compose(overrides)
    if _rank() == 0:
        for note in dict.fromkeys(note for run in runs for note in rules.notes(run)):
            print(f"note: {note}", file=sys.stderr)
    return runs


def _runs_and_request(words: list[str]) -> tuple[list[Run], Request]:
    """From `recipe=`, else from the run directory that `checkpoint=` lies in; other words are laid over either."""
    request, overrides = take_request(words)
    if request.checkpoint is None:
        raise ConfigError("no checkpoint given: add checkpoint=FOLDER, a run, a stage or a step")
    if any(word.startswith("recipe=") for word in overrides):
        return _compose(overrides), request
    return _from_checkpoint(request.checkpoint, overrides), request


def _from_checkpoint(checkpoint: str, overrides: list[str]) -> list[Run]:
    """The runs of the run directory at or above `checkpoint`; of a single stage where its folder is named."""
    from nvlm_train.config.compose import adjust, runs_from_file
    path = Path(checkpoint).resolve()
    if not path.exists():
        raise ConfigError(f"checkpoint={checkpoint}: there is no such folder")
    for folder in (path, *path.parents[:3]):
        if (folder / "config.yaml").is_file():
            runs = runs_from_file(folder / "config.yaml")
            inside = path.relative_to(folder).parts
            return adjust([run for run in runs if run.stage in inside] or runs, overrides)
    raise ConfigError(f"checkpoint={checkpoint}: no config.yaml there or above; name a folder of a run, or add recipe=NAME")


def _summary(run: Run) -> str:
    train, data, layout = run.train, run.data, run.layout
    tiles = data.max_tiles + int(data.thumbnail and data.max_tiles > 1)
    model_parallel = layout.tensor * layout.pipeline * layout.context
    sources = [f"{name} ({source.weight:g}) {source.path}" for name, source in data.blend.items()]
    rows = {
        "model": f"{run.model.architecture}, trains {', '.join(train.trainable)}",
        "steps": f"{train.steps:,} of {train.global_batch:,} samples: {train.steps * train.global_batch:,} samples",
        "rate": f"{train.lr:g} to {train.min_lr:g}, {train.schedule}, {train.warmup_steps:,} steps of warm-up",
        "samples": f"up to {data.max_tokens:,} tokens, {tiles} tiles an image, tags {run.model.tags.kind}, format {data.format}",
        "rows": f"{data.pack_tokens:,} tokens, {data.pack_tiles} tiles{'' if data.packing else ', one sample each'}",
        "layout": f"tensor {layout.tensor}, pipeline {layout.pipeline}: a multiple of {model_parallel} processes, {run.engine}",
        "data": "\n           ".join(sources),
        "writes": f"{run.run.dir}, resume {run.run.resume}",
    }
    return f"{run.recipe}, {run.stage}\n" + "\n".join(f"  {name:<8} {text}" for name, text in rows.items())


def _log_to_stderr() -> None:
    """Our own messages from the first rank, warnings from all. Libraries' chatter stays out unless asked for (-W)."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s" if _rank() == 0 else f"[rank {_rank()}] %(message)s")
    if _rank() == 0:
        for ours in ("nvlm_train", "data_prep"):
            logging.getLogger(ours).setLevel(logging.INFO)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module=r"(megatron|torch)\.")
        # Megatron reads .grad of every tensor on the CPU path.
        warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf")


def _complain(error: NvlmError) -> None:
    lead = "nvlm: " if _rank() == 0 else f"nvlm (rank {_rank()}): "
    print(lead + str(error).replace("\n", "\n      "), file=sys.stderr)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


_SETTINGS = """\
recipe=NAME chooses a recipe; every other word changes one setting, for example
  stage=sft train.steps=500 layout.tensor=2 data.blend.mine.path=shards/mine stages.sft.train.lr=1e-5
All settings and their meaning: docs/configuration.md; their values: nvlm show-config recipe=NAME"""

_CHECKPOINT = """\
checkpoint=FOLDER is a run, a stage or a step; the configuration is read from its run directory, and further words change
settings of it (run.device=cpu)."""

VERBS = {
    "train": Verb(_train, "train one stage or both", f"Trains, or goes on where the run directory left off.\n\n{_SETTINGS}\n\n"
                  "--dry-run says what would run, and stops.", ("--dry-run",)),
    "eval": Verb(_eval, "score a checkpoint", f"{_CHECKPOINT}\neval.data=FOLDER eval.limit=N eval.max_new_tokens=N", ("--json",)),
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
                     f"{_CHECKPOINT}\nimage=FILE (several times for several pictures) prompt=\"…\" eval.max_new_tokens=N",
                     ("--json",)),
    "show-config": Verb(_show_config, "print the resolved configuration", f"{_SETTINGS}\ncheckpoint=FOLDER shows that of a run.",
                        ("--json",)),
    "doctor": Verb(_doctor, "what this machine has, and which path each part takes",
                   "Imports and checks what training needs; exit code 1 if something indispensable is missing.", ("--json",)),
}
