"""Why one layout is faster or slower than another, and the words that choose it."""

from collections.abc import Iterator

from nvlm_train.config.schema import Run
from nvlm_train.planning.cost import KINDS
from nvlm_train.planning.plan import Plan

_NAMES = {"matmul": "matrix products", "attention": "attention", "elementwise": "element by element work",
          "waiting": "waiting for tensor- and context-parallel messages"}
_TOLD = 0.1     # of the whole difference: smaller parts are left out


def parts(plan: Plan) -> dict[str, float]:
    """Where the seconds of a step go, by name: the busiest stage's work, what the pipeline adds to it, the update."""
    time = plan.time
    busiest = max(time.pipeline.busy)
    found = {_NAMES[kind]: getattr(time.kinds, kind) for kind in KINDS}
    found["issuing kernels"] = busiest - time.kinds.work
    found["filling the pipeline"] = time.pipeline.seconds - busiest
    found["update and data-parallel messages"] = time.update_s
    return found


def compared(plan: Plan, other: Plan) -> str:
    """One sentence on how `plan` differs from `other`, the largest parts first."""
    mine, theirs = parts(plan), parts(other)
    changes = sorted(((mine[name] - theirs[name], name) for name in mine), key=lambda change: -abs(change[0]))
    whole = plan.time.seconds - other.time.seconds
    told = [(change, name) for change, name in changes if abs(change) > _TOLD * max(abs(whole), 1e-3)][:3]
    if not told:
        return "as fast"
    return ", ".join(f"{'+' if change > 0 else '−'}{abs(change):.2f} s {name}" for change, name in told)


def overrides(run: Run, than: Run) -> list[str]:
    """Words that turn the stage of `than` into that of `run`, as they are typed."""
    return [f"stages.{run.stage}.{key}={_typed(value)}" for key, value in _changes(run, than)]


def _typed(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value).lower()


def _changes(run: Run, than: Run) -> Iterator[tuple[str, object]]:
    for group, names in (("layout", ("tensor", "pipeline", "context", "virtual", "sequence", "first_stage_layers", "share_tiles")),
                         ("model", ("recompute", "recompute_parts")),
                         ("data", ("pack_tokens", "pack_tiles"))):
        for name in names:
            value = getattr(getattr(run, group), name)
            if value != getattr(getattr(than, group), name):
                yield f"{group}.{name}", value


def settings(run: Run) -> str:
    """A layout in few words."""
    layout, found = run.layout, [f"TP {run.layout.tensor}", f"PP {run.layout.pipeline}"]
    if layout.virtual > 1:
        found.append(f"x {layout.virtual}")
    if layout.context > 1:
        found.append(f"CP {layout.context}")
    if layout.first_stage_layers is not None:
        found.append(f"{layout.first_stage_layers} layers first")
    if layout.share_tiles:
        found.append("tiles shared out")
    again = [what for what in (run.model.recompute, *run.model.recompute_parts) if what != "none"]
    return f"{' '.join(found)}, recompute {' + '.join(again) or 'none'}, rows {run.data.pack_tokens:,} / {run.data.pack_tiles}"
