"""LLaVA's conversations: https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from data_prep.convert.base import OneSample, Paths
from data_prep.convert.fields import lookup, required
from data_prep.convert.turns import conversation
from nvlm_train.contracts import Sample


@dataclass(frozen=True, kw_only=True)
class Conversations(OneSample):
    """Records of `image` (a name, a list of names, or none: a text-only row) and `conversations` of {from, value}.

    records: files or globs. images: folders of pictures. image, turns, role, content: the fields' names. Placeholders stay where they
    are; without any, the pictures come first.
    """

    TASK: ClassVar[str] = "conversation"

    records: Paths
    images: Paths = (".",)
    image: str = "image"
    turns: str = "conversations"
    role: str = "from"
    content: str = "value"

    def made(self, key: str, record: Mapping) -> Sample:
        turns = conversation(required(record, self.turns), self.role, self.content)
        meta = {"id": record["id"]} if "id" in record else {}
        return self.sample(key, self.pictures(lookup(record, self.image)), turns, **meta)
