"""Foreign webdataset tars: pictures with .txt captions as img2dataset writes them, or with .json pages as pdfa-eng-wds has them.

https://github.com/rom1504/img2dataset#output-format, https://huggingface.co/datasets/pixparse/pdfa-eng-wds. Members are read by name and
position; nothing is extracted, run or unpickled. What a shard of ours may not be, a tar from elsewhere may not be either: damaged, cut
off, with links, with names that climb.
"""

import json
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from data_prep.convert import files
from data_prep.convert.base import Converter, Paths, outcome
from data_prep.convert.fields import answers, commonest, required
from data_prep.convert.keys import key_of
from data_prep.convert.tables import Cut, Row, Table
from data_prep.convert.transcription import CHARACTERS, transcript
from data_prep.convert.turns import exchange
from data_prep.passes import Outcome
from data_prep.prompts import prompt
from data_prep.tars import key_and_suffix, tar_members
from nvlm_train.contracts import Sample
from nvlm_train.errors import DataError, SampleRefused

RUNNABLE = (*files.PICKLED, ".py", ".pyd", ".so", ".dll", ".exe", ".sh")


@dataclass(frozen=True)
class Tar:
    """The samples of one tar: `_key`, and every member by its suffix in lower case, of those that `suffixes` names or begins."""

    path: Path
    suffixes: tuple[str, ...]

    def cuts(self) -> list[Cut]:
        return [(0, sys.maxsize)]       # whole, and unread: thousands of tars would be walked through before work begins

    def rows(self, start: int, stop: int, fields: Sequence[str] | None = None) -> Iterator[Row]:
        with open(self.path, "rb") as file:
            for number, (key, members) in enumerate(self._samples()[start:stop], start):
                record: dict[str, Any] = {"_key": key}
                for suffix, member in members.items():
                    if suffix.rpartition(".")[2] in self.suffixes:
                        file.seek(member.offset_data)
                        record[suffix] = file.read(member.size)
                yield number, record

    def fingerprint(self) -> str:
        return files.ends_fingerprint(self.path)

    def _samples(self) -> list[tuple[str, Mapping[str, tarfile.TarInfo]]]:
        groups: dict[str, dict[str, tarfile.TarInfo]] = {}
        for member in tar_members(self.path, None):
            if member.name.lower().endswith(RUNNABLE):
                raise DataError(f"{self.path} holds {member.name}, which other tools might run or unpickle: take it out of the tar first")
            key, suffix = key_and_suffix(member.name)
            groups.setdefault(key, {})[suffix.lower()] = member
        return list(groups.items())


@dataclass(frozen=True, kw_only=True)
class Webdataset(Converter):
    """A caption, or the text of a page, for each picture. A unit is a tar.

    tars: files or globs. image: extensions of pictures; several of a sample, KEY.0.png …, are its pages. text: extension of the text, txt
    or json. field: what of the json is meant; `pages` is the list of pages with `lines` of text, one for each picture. style: of the
    prompt. max_characters: as in transcription, where it applies.
    """

    TASK: ClassVar[str] = "captioning"

    tars: Paths
    image: Paths = ("jpg", "jpeg", "png", "webp", "tif", "tiff")
    text: str = "txt"
    field: str = "caption"
    style: Literal["captioning", "transcription"] = "captioning"
    max_characters: int = CHARACTERS

    def tables(self) -> list[Table]:
        return [Tar(path, (*self.image, self.text)) for path in files.find(self.root, self.tars)]

    def key(self, table: Table, number: int, record: Mapping | None) -> str:
        place = files.relative(table.path.with_suffix(""), self.root).replace("/", "-")
        return key_of(self.name, place, record["_key"])

    def convert(self, key: str, record: Mapping) -> Iterator[Outcome]:
        names = sorted((name for name in record if name.rpartition(".")[2] in self.image), key=_natural)
        if not names:
            raise SampleRefused("missing_image", f"no {' or '.join(self.image)} member; the download may have failed")
        if self.text not in record:
            raise SampleRefused("missing_text", f"no {self.text} member beside {names[0]}")
        texts = self._texts(record[self.text])
        if len(names) == 1:
            pages = {"pages": len(texts)} if len(texts) > 1 else {}     # of a picture with several, the first is shown
            yield outcome(key, lambda: self._sample(key, record[names[0]], texts[0], **pages))
            return
        if len(names) != len(texts):
            raise SampleRefused("page_mismatch", f"{len(names)} pictures, {len(texts)} texts")
        for place, (name, text) in enumerate(zip(names, texts, strict=True)):
            own = key_of(key, place)
            yield outcome(own, lambda own=own, name=name, text=text: self._sample(own, record[name], text))

    def _texts(self, data: bytes) -> list[Any]:
        """One text, or one a page. Raises SampleRefused: not_utf8, bad_json, missing_field, no_text."""
        try:
            content = data.decode("utf-8-sig")
            if self.text != "json":
                return [content]
            found = required(json.loads(content), self.field)
        except UnicodeDecodeError as error:
            raise SampleRefused("not_utf8", f"byte {error.start:,} of the {self.text} member") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise SampleRefused("bad_json", str(error)) from error
        if self.field != "pages":
            return [found]
        if not isinstance(found, list) or not found:
            raise SampleRefused("no_text", f"pages is {str(found)[:80]}")
        return [_page_text(page) for page in found]

    def _sample(self, key: str, picture: bytes, text: Any, **pages: int) -> Sample:
        given = answers(text, "the text")
        chosen = commonest(given)
        if self.style == "transcription":
            pair, meta = transcript(key, chosen, self.max_characters)
            return self.sample(key, [picture], exchange([pair]), answers=[pair[1]], **{"task": self.task or self.style, **meta, **pages})
        return self.sample(key, [picture], exchange([(prompt(self.style, key), chosen)]), answers=given, **pages)


def _page_text(page: Any) -> str:
    """pdfa's page: {"lines": {"text": [...]}, …}; its lines in their order."""
    lines = required(page, "lines.text")
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise SampleRefused("bad_field", f"lines.text is a list of texts, found {str(lines)[:80]}")
    return "\n".join(line.strip() for line in lines if line.strip())


def _natural(name: str) -> tuple:
    """`10.png` after `9.png`."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split("."))
