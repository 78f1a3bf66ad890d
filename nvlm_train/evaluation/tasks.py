"""Questions out of shards, asked and marked.

Each sample is one question: its last assistant turn is the truth (or `meta["answers"]`, where several are accepted), and
everything before it is the prompt. `meta["task"]` names the task it counts for.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image

from nvlm_train.contracts import EncodedSample, Sample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.images import image_size
from nvlm_train.data.shards import ShardFolder
from nvlm_train.engine.interface import Engine
from nvlm_train.errors import DataError, SampleRefused
from nvlm_train.evaluation.generate import generate
from nvlm_train.evaluation.scores import Score, is_correct, score

GREY = (128, 128, 128)


@dataclass(frozen=True)
class Answer:
    """One question, what the model answered, and whether that is right. refused: why the question could not be put, if so."""

    sample: Sample
    task: str
    text: str
    truths: tuple[str, ...]
    correct: bool
    refused: str | None = None


def read_questions(path: str, source: str, limit: int = 0) -> list[Sample]:
    """The samples of a folder of shards; of more than `limit` (0: all) that many, evenly spread. Raises DataError."""
    folder = ShardFolder(path, source)
    count = len(folder) if not limit else min(limit, len(folder))
    return [folder.read(i * len(folder) // count) for i in range(count)]


def blanked(sample: Sample) -> Sample:
    """The same question about mid-grey pictures of the same sizes: what is right then was not read from the picture."""
    return replace(sample, images=tuple(_grey(image_size(image)) for image in sample.images))


@lru_cache(maxsize=64)
def _grey(size: tuple[int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, GREY).save(out, "PNG")
    return out.getvalue()


def truths_of(sample: Sample) -> tuple[str, ...]:
    """The accepted answers. Raises DataError for a sample without any."""
    answers = sample.meta.get("answers")
    if answers:
        return tuple(str(answer) for answer in answers)
    if sample.turns[-1].role != "assistant":
        raise DataError(f"{sample.key} of {sample.source} cannot be scored: it has no answers in its meta, and its last turn is "
                        f"the {sample.turns[-1].role}'s; add an assistant turn with the truth")
    return (sample.turns[-1].text,)


def written(engine: Engine, encoder: Encoder, samples: Sequence[Sample], max_new_tokens: int) -> list[tuple[str, str | None]]:
    """(what the model writes, why the question could not be put if it could not) of every sample. The same samples and texts on every
    rank. A question that cannot be encoded (too long, a broken picture) gets no text and the reason."""
    prompts: list[EncodedSample] = []
    refused: dict[int, str] = {}
    for i, sample in enumerate(samples):
        try:
            prompts.append(encoder.encode_prompt(sample, reserve=max_new_tokens))
        except SampleRefused as error:
            refused[i] = str(error)
    texts = iter(generate(engine, encoder, prompts, max_new_tokens))
    return [("", refused[i]) if i in refused else (encoder.tokenizer.decode(next(texts)).rstrip(), None) for i in range(len(samples))]


def ask(engine: Engine, encoder: Encoder, samples: Sequence[Sample], max_new_tokens: int) -> list[Answer]:
    """Put every sample's question to the model and mark what it writes. A question that cannot be put counts as wrong."""
    answers = []
    for sample, (text, refused) in zip(samples, written(engine, encoder, samples, max_new_tokens), strict=True):
        text = text.strip()
        truths = truths_of(sample)
        task = str(sample.meta.get("task", sample.source))
        correct = refused is None and is_correct(text, truths)
        answers.append(Answer(sample, task, text, truths, correct, refused))
    return answers


def scores_by_task(answers: Iterable[Answer]) -> dict[str, Score]:
    """Task -> score, tasks in the order of their first question."""
    by_task: dict[str, list[Answer]] = {}
    for answer in answers:
        by_task.setdefault(answer.task, []).append(answer)
    return {task: score([(answer.correct, answer.truths) for answer in group]) for task, group in by_task.items()}
