"""The examples that an evaluation harness shows models before its own questions, taken as questions themselves."""

from pathlib import Path
from typing import Any

import yaml

from nvlm_train.errors import DataError
from nvlm_train.evaluation.readers.files import found, text_of
from nvlm_train.evaluation.readers.records import Listed


def few_shot_yaml(folder: Path, pattern: str) -> Listed:
    """Examples of lm-eval's tasks, a file a task: question, target (reasoning and answer). `_name` is FILE/NUMBER, `_task` the task's name
    in words, `_shots` the other examples of the file: a question is never among its own. Raises DataError."""
    records = []
    for path in found(folder, pattern):
        examples = _examples(path)
        task = path.stem.partition("_")[2].replace("_", " ")
        records += [{**example, "_name": f"{path.stem}/{number}", "_task": task,
                     "_shots": [other for other in examples if other["question"] != example["question"]]}
                    for number, example in enumerate(examples)]
    return Listed(f"{folder}/{pattern}", records)


def _examples(path: Path) -> list[dict[str, str]]:
    try:
        tree: Any = yaml.load(text_of(path), _Plain)
        examples = [{name: example[name] for name in ("question", "target")} for example in tree["fewshot_config"]["samples"]]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path} has no examples as lm-eval 0.4.13 writes them (fewshot_config, samples, question and target): "
                        f"{error!r}") from error
    if not all(isinstance(text, str) for example in examples for text in example.values()):
        raise DataError(f"{path}: questions and targets of examples must be text")
    return examples


class _Plain(yaml.SafeLoader):
    """Safe, and blind to lm-eval's own tags: `!function` names code, which is never read."""


_Plain.add_constructor("!function", lambda loader, node: None)
