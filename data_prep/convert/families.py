"""The converters by the name of their family of formats."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.convert.base import Converter
from data_prep.convert.chat import Chat
from data_prep.convert.coco_captions import CocoCaptions
from data_prep.convert.conversations import Conversations
from data_prep.convert.grounding import Grounding
from data_prep.convert.multiple_choice import MultipleChoice
from data_prep.convert.options import typed
from data_prep.convert.parquet import Parquet
from data_prep.convert.qa_records import QaRecords
from data_prep.convert.rendered import Rendered
from data_prep.convert.text_boxes import TextBoxes
from data_prep.convert.transcription import Transcription
from data_prep.convert.vqa import Vqa
from data_prep.convert.webdataset import Webdataset
from nvlm_train.config.typed import suggestion
from nvlm_train.errors import DataError

FAMILIES: dict[str, type[Converter]] = {
    "coco_captions": CocoCaptions,
    "vqa": Vqa,
    "conversations": Conversations,
    "parquet": Parquet,
    "webdataset": Webdataset,
    "text_boxes": TextBoxes,
    "grounding": Grounding,
    "transcription": Transcription,
    "qa_records": QaRecords,
    "multiple_choice": MultipleChoice,
    "rendered": Rendered,
    "chat": Chat,
}

_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


def converter(family: str, root: Path, options: Mapping[str, Any], name: str) -> Converter:
    """The converter of a dataset in `root`, whose samples will be called `name`.

    options: as docs/converters.md lists them; values as text (`a,b` for several) or as YAML gives them. Raises DataError: an unknown
    family or option (the nearest is named), a missing or wrong option, a file that is not there (where it was looked for).
    """
    if family not in FAMILIES:
        raise DataError(f"no family of formats is called {family!r}{suggestion(family, list(FAMILIES))} There are {', '.join(FAMILIES)}")
    if not _NAME.fullmatch(name):
        raise DataError(f"the name {name!r} starts all keys: it has 1 to 40 letters, digits, - and _. Give another with --name")
    if not root.is_dir():
        raise DataError(f"{family}: no folder at {root}")
    found = FAMILIES[family](root=root, name=name, **typed(family, FAMILIES[family], options))
    found.check()
    return found
