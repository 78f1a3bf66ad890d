"""A run out of weights alone, so that what was imported can be asked without a recipe."""

from collections.abc import Sequence
from pathlib import Path

from nvlm_train.config.compose import adjust
from nvlm_train.config.schema import Connector, Data, Model, Run, Source, Vision
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.weights_folder import TOKENIZER, Sizes, WeightsFolder
from nvlm_train.errors import ConfigError

# Every model here has an encoder; a language model alone gets the least of one, which never sees anything.
STAND_IN = {"vision": Vision(layers=1, hidden=8, heads=1, ffn=8, tile_size=28), "connector": Connector(layers=1)}
NOT_TRAINED = {"none": Source(path="none")}


def runs_of_weights(path: Path, overrides: Sequence[str]) -> list[Run]:
    """One stage with the sizes of a folder of weights, and overrides applied.

    A language model alone is made into a model that reads text and nothing else. Raises CheckpointError for a damaged folder,
    ConfigError: no language model, or no tokenizer.
    """
    weights = WeightsFolder.read(path)
    if weights.sizes.language is None:
        raise ConfigError(f"{path} holds no language model, only {' and '.join(weights.sizes.components)}: add recipe=NAME, of "
                          "whose model it is a part")
    if not (path / TOKENIZER).is_file():
        raise ConfigError(f"{path} has no {TOKENIZER}: put that of its model there, or add recipe=NAME, which names one")
    template = load_tokenizer(str(path)).template.name
    run = Run(recipe=path.resolve().name, stage="sft", model=_model(weights.sizes, str(path / TOKENIZER)),
              data=_data(weights.sizes, template))
    return adjust([run], overrides)


def _model(sizes: Sizes, tokenizer: str) -> Model:
    parts = STAND_IN if sizes.vision is None else {}
    held = {name: getattr(sizes, name) for name in sizes.components}
    return Model(sizes.architecture or Model.architecture, **parts, **held, tokenizer=tokenizer)


def _data(sizes: Sizes, template: str) -> Data:
    if sizes.vision is None:
        return Data(blend=NOT_TRAINED, template=template, system_prompt=None, max_tokens=2048, pack_tokens=2048, max_tiles=1,
                    pack_tiles=1)
    return Data(blend=NOT_TRAINED, template=template)
