"""The blends that a stage was trained on, one after another: what a checkpoint has to remember of its data, beside the cursor.

A segment begins where the blend was changed while the run went on. Sources that stay go on after what they gave before, so that
still no sample comes twice in a pass. Written as plain data, into a checkpoint's manifest and the run's `segments.json`:

    {"first_slot", "seed", "window", "order": fingerprint, "given": {source: samples before},
     "sources": {source: {"path", "samples", "weight", "epochs", "content"}}}
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvlm_train.data.order import BlendSource, Order
from nvlm_train.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A stage's order from here on, and the segments it is made of, the present one last."""

    order: Order
    segments: tuple[Mapping, ...]


def describe(order: Order, paths: Mapping[str, str]) -> dict:
    """The segment of an order, as plain data. paths: of its sources."""
    sources = {source.name: {"path": paths[source.name], "samples": source.size, "weight": source.weight, "epochs": source.epochs,
                             "content": source.content} for source in order.sources}
    return {"first_slot": order.start, "seed": order.seed, "window": order.window, "order": order.fingerprint, "given": order.given,
            "sources": sources}


def order_of(segment: Mapping, shards: Mapping[str, tuple[int, ...]]) -> Order:
    """The order that a segment describes. shards: samples of each shard of its sources; without them it can only be counted in."""
    sources = [BlendSource(name, about["samples"], about["weight"], about["epochs"], about["content"], shards.get(name, ()))
               for name, about in segment["sources"].items()]
    return Order(segment["seed"], sources, segment["window"], segment["first_slot"], segment["given"])


def plan(seed: int, sources: Sequence[BlendSource], window: int, paths: Mapping[str, str], history: Sequence[Mapping] = (),
         cursor: int = 0) -> Plan:
    """The order to go on with at slot `cursor`, after the segments of a checkpoint (`history`, empty for a new stage).

    A blend that gives the same order as before goes on in its segment; another one begins a segment, which is told. Raises
    ConfigError where the samples already taken would mean nothing any more: another seed or window, or other content of a source.
    """
    if not history:
        order = Order(seed, sources, window)
        return Plan(order, (describe(order, paths),))
    last = history[-1]
    _refuse_other_samples(last, seed, sources, window, paths)
    same = Order(seed, sources, window, last["first_slot"], last["given"])
    if same.fingerprint == last["order"]:
        return Plan(same, (*history[:-1], describe(same, paths)))
    before = order_of(last, {})
    given = {**last["given"], **{source.name: count for source, count in zip(before.sources, before.drawn(cursor), strict=True)}}
    for source in sources:
        known = last["sources"].get(source.name)
        if known is not None and known["content"] != source.content:      # another folder under an old name: a new source
            given.pop(source.name)
    order = Order(seed, sources, window, cursor, given)
    log.warning("the blend was changed: from slot %s on it is %s; it was %s. Sources that stay go on where they were",
                f"{cursor:,}", _shares(order), _shares(before))
    return Plan(order, (*(history[:-1] if last["first_slot"] == cursor else history), describe(order, paths)))


def _shares(order: Order) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in order.shares.items())


def _refuse_other_samples(last: Mapping, seed: int, sources: Sequence[BlendSource], window: int, paths: Mapping[str, str]) -> None:
    """What was taken so far is known by number; these changes give the numbers another meaning."""
    changed = []
    if seed != last["seed"]:
        changed.append(f"train.seed is {seed}, it was {last['seed']}")
    if window != last["window"]:
        changed.append(f"data.shuffle_window is {window:,}, it was {last['window']:,}")
    for source in sources:
        known = last["sources"].get(source.name)
        if known is not None and known["content"] != source.content and known["path"] == paths[source.name]:
            changed.append(f"the shards of {source.name} ({known['path']}) are others: {source.size:,} samples, content "
                           f"{source.content[:12]}…; there were {known['samples']:,}, {known['content'][:12]}…")
    if changed:
        raise ConfigError(f"the data is not what the checkpoint was trained on, so some samples would come twice and others never: "
                          f"{'; '.join(changed)}. Restore that, or start a new run.dir from these weights with init=CHECKPOINT")
