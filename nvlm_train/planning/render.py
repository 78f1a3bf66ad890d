"""The tables of `nvlm plan`: boxes in a terminal, plain columns elsewhere."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from nvlm_train.planning.plan import MEMORY_ERROR, STEP_ERROR
from nvlm_train.planning.report import gib

_PLAIN_WIDTH = 160
_MEMORY = ("weights", "gradients", "optimizer", "activations", "images", "logits", "communication", "workspace", "outside")


def console() -> Console:
    """Of the standard output; as wide as the tables need where nobody measures it."""
    found = Console(highlight=False, soft_wrap=True)
    return found if found.is_terminal else Console(highlight=False, soft_wrap=True, width=_PLAIN_WIDTH)


def show(told: dict, to: Console) -> None:
    """One stage, from `report.as_dict`."""
    own = told["own"]
    if own is not None:
        _heading(own, to)
        _memory(own, to)
        _flops(own, to)
        _seconds(own, to)
        _sources(own["layer_times"], to)
    to.print("assumed, since no shards were read:" if told["assumed"] else "samples: drawn from the stage's own shards", style="bold")
    for sentence in told["assumed"]:
        to.print(f"  {sentence}")
    _proposals(told, to)


def _table(to: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """left: columns aligned to the left; the others hold numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD if to.is_terminal else None,
                  pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left or number == len(columns) - 1 and name == "why" else "right",
                         overflow="fold")
    for row in rows:
        table.add_row(*row)
    to.print(table)
    to.print()


def _heading(own: dict, to: Console) -> None:
    to.print(f"{own['recipe']}, {own['stage']}, {own['nodes']} nodes, {own['gpus']} {own['gpu']}: {own['layout']}, "
             f"{own['replicas']} replicas", style="bold")
    to.print(f"kernels: {own['kernels']}")
    sample = own["sample"]
    to.print(f"a mean sample: {sample['tokens']:,.0f} tokens, {sample['supervised']:,.0f} with a loss, {sample['tiles']:.1f} tiles, "
             f"{sample['memory_tokens']:,.0f} memory tokens; a replica's step: {own['rows']} rows, {own['fill']:.0%} full\n")


def _memory(own: dict, to: Console) -> None:
    rows = [[str(rank["rank"]), _held(rank), *(gib(rank[name]) for name in _MEMORY), gib(rank["total"])] for rank in own["memory"]]
    _table(to, f"memory of a rank, GiB (the {own['gpu']} has {gib(own['gpu_memory'])})", ["stage", "layers", *_MEMORY, "total"], rows, 2)
    if own["tight"]:
        fullest = own["memory"][own["fullest"]]
        to.print(f"tight: rank {fullest['rank']} needs {fullest['total'] / own['gpu_memory']:.0%} of the memory, and predictions may be "
                 f"{MEMORY_ERROR:.0%} too low\n")


def _held(rank: dict) -> str:
    """The decoder layers of a stage."""
    return " ".join(f"{first}–{end - 1}" if end > first else "none" for first, end in rank["layers"])


def _flops(own: dict, to: Console) -> None:
    flops = own["flops"]
    rows = [[kind, *(f"{flops[name][kind] / 1e15:,.2f}" for name in flops), f"{sum(part[kind] for part in flops.values()) / 1e15:,.2f}"]
            for kind in ("useful", "done")]
    _table(to, "operations of a step, 10^15", ["", *flops, "total"], rows)


def _seconds(own: dict, to: Console) -> None:
    rows = [[name, f"{seconds:.3f}"] for name, seconds in own["parts"].items() if seconds >= 0.0005]
    _table(to, "where a step's seconds go (work: of the busiest stage)", ["", "s"], rows)
    groups = ["tensor", "pipeline", "data"] + ["context"] * any(sent["context"] for sent in own["volumes"])
    rows = [[str(rank), _held(own["memory"][rank]), f"{busy:.2f}", f"{busy / own['pipeline_s']:.0%}", f"{1 - busy / own['pipeline_s']:.0%}",
             *(f"{sent[name] / 1e9:.1f}" for name in groups)]
            for rank, (busy, sent) in enumerate(zip(own["busy"], own["volumes"], strict=True))]
    _table(to, "stages of a step: seconds at work and their share of the pipeline's, GB that a rank sends by group",
           ["stage", "layers", "s", "busy", "idle", *groups], rows, 2)
    to.print(f"the pipeline takes {own['pipeline_s']:.2f} s, of which stages are idle for {own['bubble']:.0%}; a mean stage has "
             f"{own['balance']:.0%} of the busiest one's work\n")
    to.print(f"step {own['step_s']:.2f} s, {own['samples_per_s']:,.1f} samples/s, MFU {own['mfu']:.1%}; {own['steps']:,} steps: "
             f"{own['days']:.1f} days, {own['gpu_hours']:,.0f} GPU-hours\n", style="bold")


def _sources(measured: dict | None, to: Console) -> None:
    """Where the times are from, part by part, if some are not modelled."""
    if measured is None:
        return
    rows = [[name, *(f"{part[key] * 1e3:.2f}" for key in ("forward_s", "backward_s", "modelled_forward_s", "modelled_backward_s"))]
            for name, part in measured["parts"].items()]
    _table(to, f"measured on {measured['device']}, torch {measured['torch']}, megatron-core {measured['megatron_core']} ({measured['file']}): "
               f"ms of a row of {measured['row']['tokens']:,} tokens and {measured['row']['tiles']} tiles on one rank",
           ["part", "forward", "backward", "modelled", "modelled"], rows)
    to.print("modelled: messages of every group, update, what another row differs by, and how seconds divide into kinds of work\n")


def _proposals(told: dict, to: Console) -> None:
    to.print()
    best = told["proposals"]
    if best:
        rows = [[one["layout"], f"{one['step_s']:.2f}", f"{one['mfu']:.1%}", f"{one['days']:.1f}", gib(one["memory"]), one["why"]]
                for one in best]
        _table(to, "layouts that fit, fastest first", ["layout", "step s", "MFU", "days", "GiB", "why"], rows)
        to.print(f"(of two whose steps differ by less than {STEP_ERROR:.0%} neither is surely the faster)")
        if best[0]["words"]:
            to.print("the first, to be typed:\n  " + " ".join(best[0]["words"]))
    left = told["tried"] - sum(told["refused"].values())
    to.print(f"{told['tried']} layouts looked at, {left} possible; the others:")
    for reason, count in sorted(told["refused"].items(), key=lambda pair: -pair[1]):
        to.print(f"  {count}: {reason}")
    to.print()
