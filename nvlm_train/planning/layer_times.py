"""Times of the model's parts that were measured on a device (benchmarks/layers.py), in place of the modelled ones.

Measured is one rank's share of each part, on one row, without the messages of its tensor-parallel group: these stay modelled, as do
messages between stages and the update. Another row of the same length is reckoned from the measured one by what the model says of both,
part by part, each way.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nvlm_train.config.schema import Run
from nvlm_train.config.typed import build
from nvlm_train.errors import ConfigError, first_line
from nvlm_train.model.accounting import trained_components
from nvlm_train.planning.cost import Cost, Pass, Place
from nvlm_train.planning.decoder_time import Row
from nvlm_train.planning.row_time import RowCosts, layer_kinds, row_costs

VERSION = 1
# (reads the memory, its input carries a gradient) -> the part's name.
LAYERS = {(False, True): "layer", (True, True): "reading layer", (False, False): "layer without gradient",
          (True, False): "first reading layer"}
ENCODER, ENCODER_LAYER = "encoder of one layer", "encoder layer"
PARTS = (ENCODER, ENCODER_LAYER, "connector", "embedding", *LAYERS.values(), "output")

# Settings that a part's time does not hang on: how many layers there are and where, names, values.
_FREE = frozenset({
    "language.layers", "vision.layers", "cross_attention.every", "cross_attention.layers", "cross_attention.tag_mask",
    "cross_attention.gate_init", "tokenizer", "init_std", "dtype"})
_FREE_ENDS = ("weights", "source", "licence", "family", "norm_eps", "layer_scale_init", "rope_base", "mean", "std")
_FREE_LAYOUT = frozenset({"pipeline", "virtual", "first_stage_layers", "overlap"})


@dataclass(frozen=True)
class Timed:
    """Seconds of one part for the measured row; backward: 0 where nothing needs a gradient."""

    forward: float
    backward: float


@dataclass(frozen=True)
class LayerTimes:
    """What one file holds. settings: those that decide the times; row: the measured one; seconds: of each part (`PARTS`)."""

    device: str
    torch: str
    megatron_core: str
    settings: Mapping
    row: Row
    seconds: Mapping[str, Timed]
    path: str = ""

    def lacks(self, run: Run, dtype: str) -> list[str]:
        """Why it does not serve a run: each setting with both values, and parts that were not measured."""
        found, wanted = dict(self.settings), settings_of(run, dtype)
        told = [f"{key} was {found.get(key, 'not known')} when measured and is {wanted.get(key, 'not known')} here"
                for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
        missing = [name for name in needed(run) if name not in self.seconds]
        return told + [f"{name} was not measured" for name in missing]

    def costs(self, run: Run, place: Place, row: Row) -> RowCosts:
        """Of a row, as `row_time.row_costs`; a measured second keeps the model's division into kinds of work."""
        costs, reference = row_costs(run, place, row), row_costs(run, place, self.row)
        kinds = [LAYERS[kind] for kind in layer_kinds(run)]
        known: dict[str, Pass] = {}
        for name, modelled, measured in zip(kinds, costs.layers, reference.layers, strict=True):
            known.setdefault(name, _scaled(modelled, measured, self.seconds[name]))
        return replace(costs, vision=_scaled(costs.vision, reference.vision, self.encoder(run.model.vision.layers)),
                       connector=_scaled(costs.connector, reference.connector, self.seconds["connector"]),
                       embedding=_scaled(costs.embedding, reference.embedding, self.seconds["embedding"]),
                       layers=tuple(known[name] for name in kinds), after=_scaled(costs.after, reference.after, self.seconds["output"]))

    def beside_the_model(self, run: Run, place: Place) -> dict[str, dict[str, float]]:
        """Part -> seconds each way for the measured row, measured and modelled, messages left out."""
        modelled = row_costs(run, place, self.row)
        parts = {"encoder": (modelled.vision, self.encoder(run.model.vision.layers)), "connector": (modelled.connector, self.seconds["connector"]),
                 "embedding": (modelled.embedding, self.seconds["embedding"])}
        parts |= {LAYERS[kind]: (layer, self.seconds[LAYERS[kind]]) for kind, layer in zip(layer_kinds(run), modelled.layers, strict=True)}
        parts["output"] = modelled.after, self.seconds["output"]
        return {name: {"forward_s": seconds.forward, "backward_s": seconds.backward, "modelled_forward_s": cost.forward.work - cost.forward.waiting,
                       "modelled_backward_s": cost.backward.work - cost.backward.waiting} for name, (cost, seconds) in parts.items()}

    def encoder(self, layers: int) -> Timed:
        """All of the vision encoder."""
        one, each = self.seconds[ENCODER], self.seconds[ENCODER_LAYER]
        return Timed(one.forward + (layers - 1) * each.forward, one.backward + (layers - 1) * each.backward)


def _scaled(costs: Pass, reference: Pass, seconds: Timed) -> Pass:
    return Pass(_one_way(costs.forward, reference.forward, seconds.forward), _one_way(costs.backward, reference.backward, seconds.backward))


def _one_way(cost: Cost, reference: Cost, seconds: float) -> Cost:
    """`seconds` for the reference's work, so much of it for this one's. Issuing kernels is in them; messages are not."""
    own = reference.work - reference.waiting
    factor = seconds / own if own else 0.0
    return cost._replace(matmul=cost.matmul * factor, attention=cost.attention * factor, elementwise=cost.elementwise * factor, calls=0.0)


def needed(run: Run) -> list[str]:
    """The parts that a run is made of."""
    kinds = {LAYERS[kind] for kind in layer_kinds(run)}
    return [name for name in PARTS if name in kinds or name not in LAYERS.values()]


def settings_of(run: Run, dtype: str) -> dict:
    """What decides the times of a run's parts, by key, as JSON has it. dtype: bf16 | fp32, of weights and activations."""
    found = {f"model.{key}": value for key, value in _flat(asdict(run.model)) if key not in _FREE and not key.endswith(_FREE_ENDS)
             and not key.startswith("tags.")}
    found |= {f"layout.{key}": value for key, value in asdict(run.layout).items() if key not in _FREE_LAYOUT}
    found |= {"model.dtype": dtype, "data.pack_tokens": run.data.pack_tokens, "stage": run.stage,
              "train.trainable": sorted(trained_components(run.model, run.train))}
    return json.loads(json.dumps(found))


def _flat(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def write_layer_times(times: LayerTimes, path: Path) -> None:
    tree = {"version": VERSION, **asdict(times)}
    del tree["path"]
    path.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


def read_layer_times(path: str) -> LayerTimes:
    """Raises ConfigError for what benchmarks/layers.py did not write."""
    try:
        tree = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        if not isinstance(tree, dict) or tree.pop("version", None) != VERSION:
            raise ValueError(f"not of version {VERSION}")
        settings = tree.pop("settings")
        row, seconds = build(Row, tree.pop("row")), {name: build(Timed, part) for name, part in tree.pop("seconds").items()}
        return LayerTimes(settings=settings, row=row, seconds=seconds, path=path, **tree)
    except OSError as error:
        raise ConfigError(f"layer_times={path} cannot be read ({error.strerror}): measure with python benchmarks/layers.py") from error
    except (ConfigError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"layer_times={path} is no file of benchmarks/layers.py ({first_line(error)}): measure again") from error


def refuse_unlike(times: LayerTimes, run: Run, gpu: str) -> None:
    """Raises ConfigError where the file was measured for another run than this, or on another device than `gpu`."""
    problems = times.lacks(run, "fp32" if run.model.dtype == "fp32" else "bf16")
    if gpu not in times.device:
        problems.insert(0, f"measured on {times.device}, and the plan is for {gpu}")
    if problems:
        raise ConfigError(f"layer_times={times.path} does not serve {run.recipe}, {run.stage}: {'; '.join(problems)}. Measure again with "
                          f"python benchmarks/layers.py and the words of this plan")
