"""What `eval`, `generate`, `compare` and `plan` are asked beside a run's settings: a checkpoint, pictures, a question, designs.

These keys are no part of a run, and are read literally, so a question needs no quotes beyond the shell's.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from nvlm_train.config.typed import build, key_paths
from nvlm_train.config.words import read_number, take_group
from nvlm_train.errors import ConfigError

LONGEST = 64        # tokens of an answer, unless said otherwise


@dataclass(frozen=True)
class Eval:
    data: str | None = None     # folder of shards to evaluate on, or of a benchmark's files; default: the run's data.validation
    limit: int = 0              # questions of each source; 0: all
    max_new_tokens: int | None = None   # longest answer; default: the benchmark's, else LONGEST
    out: str | None = None      # folder for a benchmark's answers and score; default: in the run directory


@dataclass(frozen=True)
class Draw:
    """How `generate` chooses tokens."""

    temperature: float = 0.0    # 0: the likeliest each time
    top_p: float = 1.0          # above 0: of the smallest set of likeliest tokens that reaches this probability
    seed: int = 0


@dataclass(frozen=True)
class Request:
    checkpoint: str | None = None       # a run, a stage or a step folder
    image: tuple[str, ...] = ()         # picture files, in the order of the question; image= may be given several times
    prompt: str | None = None
    benchmark: str | None = None        # eval=NAME, a file of recipes/eval
    eval: Eval = field(default_factory=Eval)
    generate: Draw = field(default_factory=Draw)

    def options(self, **more) -> dict:
        """Flat, as the commands take them."""
        asked = {**vars(self.eval), "max_new_tokens": self.eval.max_new_tokens or LONGEST}
        return {"checkpoint": self.checkpoint, "image": list(self.image), "prompt": self.prompt, **asked, **more}


@dataclass(frozen=True)
class Comparison:
    """What `nvlm compare` is asked."""

    designs: dict[str, tuple[str, ...]]     # name -> the words that make it, beside those that all designs share
    seeds: tuple[int, ...] = ()             # of every design; none given: the recipes' own
    processes: int | None = None            # of each training; default: the fewest that suit every layout
    tasks: dict[str, str] = field(default_factory=dict)     # name -> folder of questions; none: the run's data.validation
    dir: str = "runs/compare"
    eval: Eval = field(default_factory=Eval)


@dataclass(frozen=True)
class Assume:
    """Samples that `nvlm plan` reckons with where it cannot read a stage's shards; what is not given: `planning/samples.py`."""

    text_share: float | None = None     # of samples without a picture, 0 to 1
    tiles: int | None = None            # of every picture, thumbnail included
    text_tokens: int | None = None      # of every sample, tags not counted
    learned: float | None = None        # share of a text's tokens with a loss, 0 to 1


@dataclass(frozen=True)
class PlanRequest:
    """The cluster that `nvlm plan` is asked about, and files beside it."""

    nodes: int = 1
    gpu: str = "h100"
    gpus_per_node: int = 8
    assume: Assume = field(default_factory=Assume)
    layer_times: str | None = None      # measured by benchmarks/layers.py, taken in place of modelled ones
    timeline: str | None = None         # where to draw the pipeline, an SVG


def take_plan(words: Sequence[str]) -> tuple[PlanRequest, list[str]]:
    """(what is asked, the other words, which are settings). Raises ConfigError with every problem found."""
    tree: dict = {"assume": {}}
    rest, problems = [], []
    for word in words:
        key, equals, value = word.partition("=")
        group, _, name = key.rpartition(".")
        try:
            if equals and key in ("nodes", "gpus_per_node"):
                tree[key] = read_number(key, value)
            elif equals and key in ("gpu", "layer_times", "timeline"):
                tree[key] = value
            elif equals and group == "assume":
                tree["assume"][name] = value if name not in key_paths(Assume) else _amount(key, value)
            else:
                rest.append(word)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    request = build(PlanRequest, tree)
    shares = {"text_share": request.assume.text_share, "learned": request.assume.learned}
    problems = [f"{key}={tree[key]} must be at least 1" for key in ("nodes", "gpus_per_node") if tree.get(key, 1) < 1]
    problems += [f"assume.{name}={share:g} must lie between 0 and 1" for name, share in shares.items() if not 0 <= (share or 0) <= 1]
    problems += [f"assume.{name}={count} must be at least 1" for name, count in
                 (("tiles", request.assume.tiles), ("text_tokens", request.assume.text_tokens)) if (1 if count is None else count) < 1]
    if request.timeline is not None and not request.timeline.endswith(".svg"):
        problems.append(f"timeline={request.timeline} must end in .svg: that is what is drawn, for any browser")
    if problems:
        raise ConfigError(problems)
    return request, rest


def _amount(key: str, text: str) -> float:
    try:
        return float(text) if "." in text else int(text)
    except ValueError as error:
        raise ConfigError(f"{key}: expected a number, got {text!r}") from error


def take_comparison(words: Sequence[str]) -> tuple[Comparison, list[str]]:
    """(what is compared, the other words, which are every design's). Raises ConfigError with every problem found."""
    designs: dict[str, tuple[str, ...]] = {}
    tasks, plain, rest, problems = {}, {}, [], []
    for word in words:
        key, _, value = word.partition("=")
        group, _, name = key.rpartition(".")
        if key == "designs":
            designs |= {recipe: (f"recipe={recipe}",) for recipe in _listed(value)}
        elif group == "designs":
            designs[name], unreadable = _words_of(key, value)
            problems += unreadable
        elif group == "eval.tasks":
            tasks[name] = value
        elif key in ("seeds", "processes", "run.dir"):
            plain[key] = value
        else:
            rest.append(word)
    problems += [f"{name!r} cannot name a design: use letters, digits, dots, dashes, underscores, for it becomes a folder"
                 for name in designs if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name)]
    if len(designs) < 2:
        problems.append(f"{len(designs)} designs given, and it takes two to compare: designs=nvlm_d_tiny,nvlm_x_tiny")
    request, rest = take_request(rest)
    if request != Request(eval=request.eval) or request.eval.data is not None or request.eval.out is not None:
        problems.append("checkpoint=, image=, prompt=, eval=, eval.data= and eval.out= belong to eval and generate; name questions by "
                        "eval.tasks.NAME=FOLDER")
    if problems:
        raise ConfigError(problems)
    seeds = tuple(read_number("seeds", text) for text in _listed(plain.get("seeds", "")))
    processes = read_number("processes", plain["processes"]) if "processes" in plain else None
    if len(set(seeds)) < len(seeds) or (processes is not None and processes < 1):
        raise ConfigError(f"seeds={plain.get('seeds')} must differ from each other, and processes={processes} be at least 1")
    return Comparison(designs, seeds, processes, tasks, plain.get("run.dir", Comparison.dir), request.eval), rest


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.strip("[]").split(",") if part.strip()]


def _words_of(key: str, text: str) -> tuple[tuple[str, ...], list[str]]:
    """(a design's words, what is wrong with them)."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        return (), [f"{key}: {error} in {text}"]
    ours = [word for word in words if word.startswith(("run.dir=", "train.seed=", "designs", "seeds=", "eval."))]
    problems = [f"{key}: {word} is the comparison's to say, not a design's" for word in ours]
    return words, problems if words else [f'{key}: no settings given, such as {key}="recipe=nvlm_d_tiny train.lr=1e-4"']


def take_request(overrides: Sequence[str]) -> tuple[Request, list[str]]:
    """(the request in `key=value` words, the words that are not part of it). Raises ConfigError for unknown eval.… and generate.… keys."""
    options, words, problems = take_group(overrides, "eval", Eval)
    draw, words, odd = take_group(words, "generate", Draw)
    tree: dict = {"image": []}
    rest = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key == "image":
            tree["image"].append(value)
        elif equals and key in ("checkpoint", "prompt"):
            tree[key] = value
        elif equals and key == "eval":
            tree["benchmark"] = value
        else:
            rest.append(word)
    problems += odd
    if problems:
        raise ConfigError(problems)
    request = build(Request, {**tree, "eval": options, "generate": draw})
    if request.eval.limit < 0 or (request.eval.max_new_tokens is not None and request.eval.max_new_tokens < 1):
        raise ConfigError(f"eval.limit={request.eval.limit} must be at least 0 and eval.max_new_tokens="
                          f"{request.eval.max_new_tokens} at least 1")
    return request, rest

