"""A generator in this process, as one of those that hold the model, and how they are kept together."""

import os
import signal
from collections.abc import Sequence

from nvlm_train.config.rules import check_world
from nvlm_train.config.schema import Run
from nvlm_train.errors import ConfigError
from nvlm_train.evaluation.opening import Model, open_model
from nvlm_train.generation.generator import Generator
from nvlm_train.serving.worker import Orders, Share, follow


def refuse_copies(runs: Sequence[Run]) -> None:
    """Raises ConfigError where the processes would hold the model more than once: who asks is answered by one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if (copies := check_world(runs[-1], world)) > 1:
        layout = runs[-1].layout
        context = f" x layout.context={layout.context}" if layout.context > 1 else ""
        raise ConfigError(f"{world} processes hold {copies} copies of the model (layout.tensor={layout.tensor} x layout.pipeline="
                          f"{layout.pipeline}{context}), and one is asked: start {world // copies}, or set layout.tensor={world}")


def is_main() -> bool:
    """Whether this process talks to people; the others follow it."""
    return os.environ.get("RANK", "0") == "0"


def open_generator(runs: Sequence[Run], checkpoint: str, slots: int) -> tuple[Model, Generator, Share]:
    """A collective. Raises CheckpointError, ConfigError."""
    model = open_model(runs, checkpoint)
    return model, Generator(model.engine, model.encoder, slots), _sharing(model)


def mirror(runs: Sequence[Run], checkpoint: str, slots: int) -> None:
    """What every rank but the main one does, until that one stops. Signals are for the main rank: torchrun passes them to all."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    _, generator, share = open_generator(runs, checkpoint, slots)
    follow(generator, share)


def _sharing(model: Model) -> Share:
    layout = model.run.layout
    if layout.tensor * layout.pipeline * layout.context == 1:
        return lambda orders: orders or Orders()
    return lambda orders: model.engine.gather_objects(orders)[0]     # the main rank is the first
