"""Recipes and command-line overrides to resolved runs. The one file that knows Hydra.

Hydra composes the YAML files of `recipes/` and reads the grammar of overrides; from then on there are only plain dictionaries.
`overlay` lays a stage's settings over each other, `${…}` is resolved, every key and type is checked (`typed`), and the rules
that join fields are run (`rules`).
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nvlm_train.config import rules
from nvlm_train.config.dump import from_file, is_secret, runs_from_file, to_json, to_yaml
from nvlm_train.config.overlay import (
    STAGES,
    Assignment,
    assignments,
    path_of,
    stage_tree,
    unknown_in_assignments,
    unknown_in_tree,
    within_stage,
)
from nvlm_train.config.schema import Run
from nvlm_train.config.settings_file import recipes_dir
from nvlm_train.config.typed import build, is_text, kind_at, suggestion
from nvlm_train.errors import ConfigError, first_line

__all__ = ["adjust", "compose", "files_of", "from_file", "read_value", "recipe_names", "recipes_dir", "resolve", "runs_from_file",
           "sweep_words", "to_json", "to_yaml"]

_RESOLVER = re.compile(r"\$\{\s*([\w.]+)\s*:\s*([^,}]*)")


def compose(overrides: Sequence[str]) -> list[Run]:
    """The runs that `key=value` overrides ask for, one per stage that runs, pretraining first.

    Raises ConfigError with every problem found: unknown keys (with the nearest known one), wrong types, broken rules.
    """
    choices, values = _split(overrides)
    tree = _compose_recipe(tuple(choices.items()))
    given = _parse_all(values)
    stage = next((a.value for a in reversed(given) if a.path == ("stage",)), tree.get("stage", "all"))
    given = [a for a in given if a.path != ("stage",)]
    problems = [*unknown_in_tree(tree), *unknown_in_assignments(given)]
    if stage not in (*STAGES, "all"):
        problems.append(f"stage: {stage!r} is none of {', '.join(STAGES)}, all{suggestion(str(stage), [*STAGES, 'all'])}")
    if problems:
        raise ConfigError(problems)
    wanted = STAGES if stage == "all" else (stage,)
    return _resolve({name: tree | {"recipe": choices["recipe"]} for name in wanted}, given)


def adjust(runs: Sequence[Run], overrides: Sequence[str]) -> list[Run]:
    """Resolved runs, such as those of a run directory's config.yaml, with overrides applied. Raises ConfigError."""
    given = _parse_all(overrides)
    if problems := list(unknown_in_assignments(given)):
        raise ConfigError(problems)
    return _resolve({run.stage: dataclasses.asdict(run) for run in runs}, given)


def sweep_words(sweep: dict[str, str]) -> list[tuple[str, ...]]:
    """Every combination of a sweep's values as `key=value` words, the last setting changing fastest; [] without a sweep.

    Values are written as Hydra's multirun has them: 1e-4,2e-5 or range(1,4). Raises ConfigError.
    """
    parser = OverridesParser.create()
    choices = []
    for key, raw in sweep.items():
        try:
            override = parser.parse_override(f"value={raw}")
            values = list(override.sweep_string_iterator()) if override.is_sweep_override() else [raw]
        except HydraException as error:
            raise ConfigError(f"sweep.{key}={raw}: cannot be read as values ({first_line(error)})") from error
        choices.append([f"{key}={value}" for value in values])
    return list(itertools.product(*choices)) if choices else []


def recipe_names() -> list[str]:
    return files_of("recipe")


def files_of(group: str) -> list[str]:
    """The names of a folder of recipes/."""
    return sorted(path.stem for path in (recipes_dir() / group).glob("*.yaml"))


def _split(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(choices of files, group -> name; the other overrides). Raises ConfigError for a file that does not exist."""
    groups = {path.name for path in recipes_dir().iterdir() if path.is_dir() and path.name.isidentifier()}
    choices, values, problems = {}, [], []
    for text in overrides:
        group, _, name = text.partition("=")
        if group.partition(".")[0] == "cluster":
            problems.append(f"{text}: a run knows no cluster; cluster=… and cluster.… belong to nvlm submit")
            continue
        if group not in groups:
            values.append(text)
            continue
        known = files_of(group)
        if name not in known:
            problems.append(f"{group}={name}: there is no such {group}{suggestion(name, known)} (known: {', '.join(known)})")
        choices[group] = name
    if "eval" in choices:
        problems.append(f"eval={choices['eval']}: a run knows no benchmark; eval=… belongs to nvlm eval and nvlm score")
    if "recipe" not in choices:
        problems.insert(0, f"no recipe given: add recipe=NAME, one of {', '.join(recipe_names())}")
    if problems:
        raise ConfigError(problems)
    return choices, values


@functools.cache
def _compose_recipe(choices: tuple[tuple[str, str], ...]) -> dict:
    """The YAML files of (group, name) choices as one plain dictionary, `${…}` still in place. Not to be changed: it is kept."""
    try:
        with initialize_config_dir(config_dir=str(recipes_dir()), version_base="1.3"):
            composed = hydra_compose(config_name="config", overrides=[f"{group}={name}" for group, name in choices])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"recipe {dict(choices)['recipe']} cannot be composed: {error}") from error
    return OmegaConf.to_container(composed, resolve=False)


def _parse_all(overrides: Sequence[str]) -> list[Assignment]:
    return [assignment for text in overrides for assignment in _parse(text)]


def _parse(text: str) -> list[Assignment]:
    """What one override sets. `+` and `++` are accepted and mean nothing: the schema says which keys exist."""
    given, equals, raw = text.partition("=")
    path = path_of(given.lstrip("+~"))
    if given.startswith("~"):
        return list(assignments(path, None, delete=True))
    return list(assignments(path, read_value(text, raw if equals else None, is_text(kind_at(Run, within_stage(path))))))


def read_value(text: str, raw: str | None, wants_text: bool) -> Any:
    """What `raw` means, the part after the = of the override `text`; None: there is no =. Raises ConfigError."""
    parser = OverridesParser.create()
    try:
        if raw is None:
            raise HydraException("there is no =")
        override = parser.parse_override(f"value={raw}")
        if override.is_sweep_override():
            raise HydraException("several values at once; write a list as [a,b] and quote text with commas")
        value = override.value()
    except HydraException as error:
        # The grammar refuses ~/runs or a=b; where a setting is text they need no quotes.
        if raw is None or not wants_text:
            raise ConfigError(f"{text}: cannot be read as key=value ({first_line(error)})") from error
        value = raw
    if wants_text and not isinstance(value, (str, type(None))):
        value = raw     # a folder named 2026
    return value


def _resolve(trees: dict[str, dict], given: Sequence[Assignment]) -> list[Run]:
    """Stage name -> settings, with the command line's laid over them, as checked runs. Raises ConfigError."""
    runs: list[Run] = []
    found: dict[str, list[str]] = {}
    idle: dict[Assignment, int] = {}
    for stage, tree in trees.items():
        merged, not_deleted = stage_tree(tree, stage, given)
        for assignment in not_deleted:
            idle[assignment] = idle.get(assignment, 0) + 1
        try:
            runs.append(resolve({"recipe": tree["recipe"], "stage": stage, **merged}, Run))
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(stage)
    problems = rules.by_stage(found, tuple(trees))
    problems += [f"~{a.shown}: there is nothing of that name to delete" for a, times in idle.items()
                 if times == (len(trees) if a.stage is None else 1)]
    if problems:
        raise ConfigError(problems)
    rules.check(runs)
    return runs


def resolve(tree: dict, cls: type) -> Any:
    """`tree` with `${…}` resolved, as an instance of dataclass `cls`. Raises ConfigError with every problem found."""
    problems = list(_forbidden(tree))
    if problems:
        raise ConfigError(problems)
    try:
        plain = OmegaConf.to_container(OmegaConf.create(tree), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(first_line(error)) from error
    return build(cls, plain)


def _forbidden(tree: Any) -> Iterator[str]:
    """Texts that would run code or pull a secret in: only `${other.key}` and `${oc.env:NAME,default}` are resolved."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        for value in tree:
            yield from _forbidden(value)
    elif isinstance(tree, str):
        for resolver, argument in _RESOLVER.findall(tree):
            if resolver != "oc.env":
                yield f"{tree}: {resolver} is refused; only ${{key}} and ${{oc.env:NAME,default}} are resolved"
            elif not argument.strip().isidentifier() or is_secret(argument):
                yield (f"{tree}: settings are written to files and logs, so no secret may enter them; "
                       "libraries that need one read it from the environment themselves")
