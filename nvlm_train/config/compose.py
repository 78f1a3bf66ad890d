"""Recipes and command-line overrides to resolved runs. The one file that knows Hydra.

Hydra composes the YAML files of `recipes/` and reads the grammar of overrides; from then on there are only plain dictionaries.
`overlay` lays a stage's settings over each other, `${…}` is resolved, every key and type is checked (`typed`), and the rules
that join fields are run (`rules`).
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
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
from nvlm_train.config.typed import build, is_text, kind_at, suggestion
from nvlm_train.errors import ConfigError

__all__ = ["adjust", "compose", "from_file", "recipe_names", "recipes_dir", "runs_from_file", "to_json", "to_yaml"]

_PACKAGE = Path(__file__).resolve().parent.parent
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


def recipes_dir() -> Path:
    """The folder of recipes: inside an installed package, else beside it in a checkout."""
    for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"no recipes in {_PACKAGE / 'recipes'} nor in {_PACKAGE.parent / 'recipes'}: reinstall nvlm-train")


def recipe_names() -> list[str]:
    return _files_of("recipe")


def _files_of(group: str) -> list[str]:
    return sorted(path.stem for path in (recipes_dir() / group).glob("*.yaml"))


def _split(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(choices of files, group -> name; the other overrides). Raises ConfigError for a file that does not exist."""
    groups = {path.name for path in recipes_dir().iterdir() if path.is_dir() and path.name.isidentifier()}
    choices, values, problems = {}, [], []
    for text in overrides:
        group, _, name = text.partition("=")
        if group not in groups:
            values.append(text)
            continue
        known = _files_of(group)
        if name not in known:
            problems.append(f"{group}={name}: there is no such {group}{suggestion(name, known)} (known: {', '.join(known)})")
        choices[group] = name
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
    parser = OverridesParser.create()
    return [assignment for text in overrides for assignment in _parse(parser, text)]


def _parse(parser: OverridesParser, text: str) -> list[Assignment]:
    """What one override sets. `+` and `++` are accepted and mean nothing: the schema says which keys exist."""
    given, equals, raw = text.partition("=")
    path = path_of(given.lstrip("+~"))
    if given.startswith("~"):
        return list(assignments(path, None, delete=True))
    wants_text = is_text(kind_at(Run, within_stage(path)))
    try:
        if not equals:
            raise HydraException("there is no =")
        override = parser.parse_override(f"value={raw}")
        if override.is_sweep_override():
            raise HydraException("several values at once; write a list as [a,b] and quote text with commas")
        value = override.value()
    except HydraException as error:
        # The grammar refuses ~/runs or a=b; where a setting is text they need no quotes.
        if not (equals and wants_text):
            raise ConfigError(f"{text}: cannot be read as key=value ({str(error).splitlines()[0]})") from error
        value = raw
    if wants_text and not isinstance(value, (str, type(None))):
        value = raw     # a folder named 2026
    return list(assignments(path, value))


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
            runs.append(_typed({"recipe": tree["recipe"], "stage": stage, **merged}))
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


def _typed(tree: dict) -> Run:
    problems = list(_forbidden(tree))
    if problems:
        raise ConfigError(problems)
    try:
        plain = OmegaConf.to_container(OmegaConf.create(tree), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    return build(Run, plain)


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
