"""The verb `plan`: does a recipe fit a cluster, how fast does it go, and what would go faster. Loads neither Megatron nor weights."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nvlm_train.config import rules
from nvlm_train.config.request import Assume, take_plan
from nvlm_train.config.schema import Run
from nvlm_train.errors import ConfigError, DataError, first_line
from nvlm_train.verbs.base import SETTINGS, Verb, compose_runs

if TYPE_CHECKING:
    from nvlm_train.model.accounting import SampleWork
    from nvlm_train.planning.devices import Cluster
    from nvlm_train.planning.layer_times import LayerTimes
    from nvlm_train.planning.report import Verdict

_DRAWN = 2000       # samples, where they are assumed
_MORE = (2, 4, 8, 16)   # times the nodes, tried where nothing fits


def _plan(words: list[str], flags: set[str]) -> int:
    from nvlm_train.planning.devices import Cluster, find_gpu
    from nvlm_train.planning.layer_times import read_layer_times
    from nvlm_train.planning.render import console, show
    from nvlm_train.planning.report import as_dict

    asked, overrides = take_plan(words)
    cluster = Cluster(find_gpu(asked.gpu), asked.nodes, asked.gpus_per_node)
    runs = compose_runs(overrides)
    if runs[0].engine.name != "megatron":
        raise ConfigError(f"nvlm plan knows what engine=megatron needs and takes, not engine={runs[0].engine.name}: leave that out")
    measured = read_layer_times(asked.layer_times) if asked.layer_times else None
    verdicts = [_verdict(run, cluster, asked.assume, measured) for run in runs]
    told = {run.stage: as_dict(verdict) for run, verdict in zip(runs, verdicts, strict=True)}
    if "--json" in flags:
        print(json.dumps(told, indent=1))
    else:
        to = console()
        for stage in told.values():
            show(stage, to)
    if asked.timeline:
        _draw(verdicts, Path(asked.timeline))
    if problems := [verdict.problem for verdict in verdicts if verdict.problem]:
        raise ConfigError(problems)
    return 0


def _draw(verdicts: Sequence["Verdict"], path: Path) -> None:
    """Of the recipe's layout and of the fastest one that is proposed; of several stages each in a file of its own."""
    from nvlm_train.planning.timeline import draw

    for verdict in verdicts:
        shown = [("as asked", verdict.own)] if verdict.own else []
        if verdict.found.best and (not verdict.own or verdict.found.best[0].run != verdict.own.run):
            shown.append(("the fastest proposed", verdict.found.best[0]))
        if not shown:
            print(f"{verdict.run.stage}: nothing to draw, no layout is possible", file=sys.stderr)
            continue
        file = path if len(verdicts) == 1 else path.with_stem(f"{path.stem}-{verdict.run.stage}")
        try:
            file.write_text(draw(shown), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"timeline={file} cannot be written ({error.strerror})") from error
        print(f"drawn: {file}", file=sys.stderr)


def _verdict(run: Run, cluster: "Cluster", assume: Assume, measured: "LayerTimes | None" = None) -> "Verdict":
    from nvlm_train.planning.layer_times import refuse_unlike
    from nvlm_train.planning.plan import Plan, bench_of
    from nvlm_train.planning.reasons import overrides
    from nvlm_train.planning.report import Verdict
    from nvlm_train.planning.search import search

    if measured:
        refuse_unlike(measured, run, cluster.gpu.name)
    samples, assumed = _samples(run, assume)
    bench = bench_of(run, cluster, samples, measured)
    found, own, problem = search(run, bench), None, None
    try:
        rules.check_world(run, cluster.world)
        own = Plan(run, bench)
        problem = None if own.fits else _too_full(own)
    except ConfigError as error:
        problem = f"{run.stage}: {error}"
    if problem and found.best:
        problem += f". The fastest that does: {' '.join(overrides(found.best[0].run, run))}"
    elif problem:
        problem += f". {_with_more_nodes(run, bench, cluster)}"
    return Verdict(run, own, found, assumed, problem)


def _too_full(own) -> str:
    """Why the layout does not fit, and what it would have to compute again."""
    from nvlm_train.planning.reasons import overrides
    from nvlm_train.planning.recomputing import fitting

    fits = None if own.bench.memo.measured else fitting(own)
    return own.too_full() + (f". This layout fits with {' '.join(overrides(fits.run, own.run))}" if fits else "")


def _with_more_nodes(run: Run, bench, cluster: "Cluster") -> str:
    from nvlm_train.planning.plan import bench_of
    from nvlm_train.planning.reasons import overrides
    from nvlm_train.planning.search import search

    for times in _MORE:
        larger = replace(cluster, nodes=cluster.nodes * times)
        if best := search(run, bench_of(run, larger, bench.samples, bench.memo.measured)).best:
            words = " ".join(overrides(best[0].run, run))
            return f"No layout of {cluster.nodes} nodes fits; on {larger.nodes} this does: {words or 'the recipe as it is'}"
    return f"No layout fits, nor any on {cluster.nodes * _MORE[-1]} nodes: take GPUs with more memory, or smaller rows (data.pack_tokens)"


def _samples(run: Run, assume: Assume) -> tuple[Sequence["SampleWork"], list[str]]:
    """(samples, what of them is assumed). What the user says goes before what the shards hold."""
    from nvlm_train.planning.samples import assumed_samples, sentences

    paths = [source.path for source in run.data.blend.values()]
    missing = [path for path in paths if not (Path(path) / "index.json").is_file()]
    why = f"no indexed shards here at {missing[0]}" if missing else ""
    if not missing and assume == Assume():
        from nvlm_train.planning.shards import read_samples
        try:
            return read_samples(run).samples, []
        except (DataError, ConfigError) as error:
            why = first_line(error)
    return assumed_samples(run, assume, _DRAWN), [*([why] if why else []), *sentences(run, assume)]


VERBS = {
    "plan": Verb(_plan, "whether a recipe fits a cluster, and how fast it goes",
                 f"nodes=N (1) gpu=NAME (h100; a100, h200, b200) gpus_per_node=N (8) name the cluster.\n{SETTINGS}\n\n"
                 "Says of each stage what every rank's memory holds, where a step's seconds go, days and GPU-hours, and which layouts\n"
                 "would be faster. Where the stage's shards are not here their samples are assumed, as the plan says:\n"
                 "assume.text_share=0.2 assume.tiles=7 assume.text_tokens=500 assume.learned=0.6 say otherwise.\n"
                 "timeline=FILE.svg draws the pipeline. layer_times=FILE takes times that benchmarks/layers.py measured for the modelled ones.\n"
                 "Exit code 2 if the recipe's own layout does not fit. How to read it, and how far to trust it: docs/planning.md",
                 ("--json",)),
}
