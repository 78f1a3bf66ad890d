"""Reads the catalog: what each dataset is, where it comes from, how it is asked about, and which converter reads it.

The YAML files beside this one hold the entries, `NAME: {field: value, ...}`, fields as in `Entry`. Every field is checked when the
catalog is read; the options in `convert` belong to the converters and are checked by them.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nvlm_train.config.typed import suggestion
from nvlm_train.errors import DataError

FOLDER = Path(__file__).parent

TASKS: dict[str, dict[str, str]] = {
    "pretrain": {
        "captioning": "Captioning", "natural_vqa": "VQA on natural images", "chart": "Chart", "document": "Document",
        "ocr": "OCR and scene text", "math": "Math",
    },
    "sft": {
        "captioning": "Captioning", "natural_vqa": "VQA on natural images", "knowledge": "General knowledge",
        "visual_reasoning": "Visual reasoning", "chart": "Chart and diagram", "table": "Table", "document": "Document",
        "ocr": "OCR, screens and scene text", "math": "Math", "science": "Science", "visual_instruction": "Visual instruction",
    },
    "text": {"general": "General", "math": "Math", "code": "Code"},
}
"""Stage -> task groups of the paper (Table 4; Table 6; section 5.3), each with its name for people."""

STYLES = ("captioning", "vqa", "grounded_ocr", "referring", "ocr_boxes", "transcription", "latex", "chart", "multiple_choice", "chat")
"""How a sample is asked about: the seven formats of the paper's Figure 11, then those of finetuning. `chat`: as the dataset asks."""

FAMILIES = ("coco_captions", "vqa", "conversations", "parquet", "webdataset", "text_boxes", "grounding", "transcription", "qa_records",
            "multiple_choice", "rendered", "chat")
"""Converters, by the format they read."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")     # a key in recipes, a folder, and the start of every sample's key


@dataclass(frozen=True)
class Entry:
    """One dataset.

    task:      stage (pretrain, sft, text) -> task group; a dataset counts in every stage that is named
    style:     one of STYLES
    convert:   {"family": one of FAMILIES, option: value, ...}; file names are relative to the dataset's folder
    source:    address of the dataset's own home; None where the paper leaves open which dataset it means (`note` says so)
    copy:      address of the public copy whose files `convert` reads, where that is not `source`
    licence:   SPDX identifier, or words; "unknown" means that its users have to find out
    size:      pictures (rows, where there are no pictures) to train on, rounded as published; None where not known for certain
    benchmark: benchmark of the paper whose train split this is: its score is not zero-shot
    held_out:  benchmarks that took questions or pictures from this dataset: what to decontaminate against
    paper:     whether the paper trained on it; False for datasets that were added
    """

    name: str
    title: str
    task: Mapping[str, str]
    style: str
    convert: Mapping[str, Any]
    source: str | None = None
    copy: str | None = None
    licence: str = "unknown"
    size: int | None = None
    benchmark: str | None = None
    held_out: tuple[str, ...] = field(default=())
    note: str = ""
    paper: bool = True

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages that train on it, in the order of TASKS."""
        return tuple(stage for stage in TASKS if stage in self.task)


def load_catalog(folder: Path = FOLDER) -> dict[str, Entry]:
    """All entries by name, file by file. Raises DataError naming the file, the entry and the field that is wrong."""
    catalog: dict[str, Entry] = {}
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise DataError(f"no catalog in {folder}: it should hold *.yaml files; reinstall nvlm-train")
    for path in files:
        for name, fields in _read(path).items():
            if name in catalog:
                raise DataError(f"{path.name}: {name} is in another file of the catalog too; give one of them another name")
            catalog[name] = _entry(name, fields, f"{path.name}: {name}")
    return catalog


def entry(name: str, folder: Path = FOLDER) -> Entry:
    """One entry. Raises DataError that names the nearest one if there is none of that name."""
    catalog = load_catalog(folder)
    if name not in catalog:
        raise DataError(f"the catalog has no dataset {name!r}{suggestion(name, list(catalog))} "
                        f"(python -m data_prep catalog lists all {len(catalog)})")
    return catalog[name]


def counts(catalog: Mapping[str, Entry]) -> dict[str, int]:
    """Stage -> datasets of the paper."""
    return {stage: sum(found.paper and stage in found.task for found in catalog.values()) for stage in TASKS}


def in_group(catalog: Mapping[str, Entry], stage: str, group: str) -> list[Entry]:
    """The paper's datasets of a task group."""
    return [found for found in catalog.values() if found.paper and found.task.get(stage) == group]


class _Loader(yaml.SafeLoader):
    """Safe, and refuses a key that stands twice: plain YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        if twice := next((key for place, key in enumerate(keys) if key in keys[:place]), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no catalog file: it holds entries, `NAME: {{title: ..., task: ...}}`")
    return content


def _entry(name: Any, fields: Any, where: str) -> Entry:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DataError(f"{where}: a name is at most 40 small letters, digits and underscores, a letter first")
    if not isinstance(fields, dict):
        raise DataError(f"{where}: an entry is a list of fields, found {str(fields)[:60]!r}")
    known = {f.name: f for f in dataclasses.fields(Entry) if f.name != "name"}
    for key in fields:
        if key not in known:
            raise DataError(f"{where}: there is no field {key!r}{suggestion(str(key), list(known))} (fields: {', '.join(known)})")
    for key, kind in known.items():
        if key not in fields and kind.default is dataclasses.MISSING:
            raise DataError(f"{where}: the field {key} is missing")
    for key, value in fields.items():
        if wrong := _wrong(key, value):
            raise DataError(f"{where}: {key}: {wrong}")
    if fields.get("source") is None and not fields.get("note"):
        raise DataError(f"{where}: without a source, a note has to say why")
    return Entry(name, **{**fields, "held_out": tuple(fields.get("held_out", ()))})


def _wrong(key: str, value: Any) -> str | None:
    """What is wrong with a field's value, for a person; None if nothing is."""
    if key in ("source", "copy"):
        good = value is None or isinstance(value, str) and re.match(r"https?://\S+$", value)
        return None if good else f"an address that begins with https://, or null; found {value!r}"
    if key == "task":
        return _wrong_task(value)
    if key == "style":
        return _not_one_of(value, STYLES)
    if key == "convert":
        if not isinstance(value, dict) or "family" not in value:
            return f"needs a family, one of {', '.join(FAMILIES)}"
        return _not_one_of(value["family"], FAMILIES)
    if key == "size":
        good = value is None or isinstance(value, int) and not isinstance(value, bool) and value > 0
        return None if good else f"a positive number, or null; found {value!r}"
    if key == "paper":
        return None if isinstance(value, bool) else f"true or false; found {value!r}"
    if key == "held_out":
        good = isinstance(value, list) and all(isinstance(name, str) and name for name in value)
        return None if good else f"a list of benchmarks' names; found {value!r}"
    good = isinstance(value, str) and value or key == "benchmark" and value is None
    return None if good else f"a text; found {value!r}"


def _wrong_task(value: Any) -> str | None:
    if not isinstance(value, dict) or not value:
        return f"stage and task group, as in {{sft: math}}; found {value!r}"
    for stage, group in value.items():
        if wrong := _not_one_of(stage, TASKS) or _not_one_of(group, TASKS[stage], f"in {stage}, "):
            return wrong
    return None


def _not_one_of(value: Any, known: Collection[str], where: str = "") -> str | None:
    if isinstance(value, str) and value in known:
        return None
    return f"{where}{value!r} is none of {', '.join(known)}{suggestion(str(value), list(known))}"
