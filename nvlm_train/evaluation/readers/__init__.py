"""Readers of public file formats, by the names that recipes/eval/*.yaml use."""

from collections.abc import Callable, Sequence
from pathlib import Path

from nvlm_train.config.benchmark import Benchmark
from nvlm_train.errors import ConfigError
from nvlm_train.evaluation.readers.few_shot import few_shot_yaml
from nvlm_train.evaluation.readers.generated import reasoning_gym
from nvlm_train.evaluation.readers.pairs import coco_captions, vqa_v2
from nvlm_train.evaluation.readers.parquet import Parquet
from nvlm_train.evaluation.readers.records import Record, Records, filled, value_of
from nvlm_train.evaluation.readers.shards import Shards
from nvlm_train.evaluation.readers.text import easy_vqa, json_folder, json_lines, json_list, mmlu_csv

__all__ = ["READERS", "Record", "Records", "filled", "open_records", "value_of"]

READERS: dict[str, Callable[[Path, Benchmark], Records]] = {
    "parquet": lambda folder, asked: Parquet(folder, asked.files),
    "json_lines": lambda folder, asked: json_lines(folder, *asked.files),
    "json_list": lambda folder, asked: json_list(folder, *asked.files, **asked.also),
    "json_folder": lambda folder, asked: json_folder(folder, *asked.files),
    "mmlu_csv": lambda folder, asked: mmlu_csv(folder, *asked.files, **asked.also),
    "vqa_v2": lambda folder, asked: vqa_v2(folder, *asked.files, **asked.also),
    "easy_vqa": lambda folder, asked: easy_vqa(folder, *asked.files, **asked.also),
    "few_shot_yaml": lambda folder, asked: few_shot_yaml(folder, *asked.files),
    "reasoning_gym": lambda folder, asked: reasoning_gym(asked.generated, asked.name),
    "coco_captions": lambda folder, asked: coco_captions(folder, *asked.files, **asked.also),
}
SHARDS = "shards"       # the only one that reads several folders


def open_records(benchmark: Benchmark, folders: Sequence[str]) -> Records:
    """The records of a benchmark in the folder that the user names (or in its own). Raises ConfigError, DataError."""
    if benchmark.reader == SHARDS:
        return Shards(folders)
    if benchmark.reader not in READERS:
        raise ConfigError(f"eval={benchmark.name}: no reader is called {benchmark.reader!r}; there are {', '.join((*READERS, SHARDS))}")
    if len(folders) != 1:
        raise ConfigError(f"eval={benchmark.name} needs its public files: add eval.data=FOLDER, with {', '.join(benchmark.files)} in it "
                          f"({benchmark.source})")
    return READERS[benchmark.reader](Path(folders[0]).expanduser(), benchmark)
