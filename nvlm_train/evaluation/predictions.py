"""Answers as rows of predictions.jsonl, the report's gallery (the format is described in `training.report`)."""

from collections.abc import Iterable, Sequence

from nvlm_train.contracts import IMAGE_PLACEHOLDER, Sample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.images import image_extension
from nvlm_train.evaluation.seen import data_address, grids_of, seen_tiles
from nvlm_train.evaluation.tasks import Answer

SHOWN = 24      # rows kept of each task: the gallery shows a dozen, half of them wrong ones if there are


def rows(answers: Iterable[Answer], encoder: Encoder, max_new_tokens: int) -> list[dict]:
    """Rows of up to SHOWN answers of every task, as many wrong ones as right ones where there are.

    max_new_tokens: as the questions were asked; a picture of a long question gets fewer tiles the longer its answer may be.
    """
    by_task: dict[str, list[Answer]] = {}
    for answer in answers:
        by_task.setdefault(answer.task, []).append(answer)
    return [_row(answer, encoder, max_new_tokens) for group in by_task.values() for answer in _mixed(group)]


def _mixed(answers: Sequence[Answer]) -> list[Answer]:
    wrong = [answer for answer in answers if not answer.correct]
    right = [answer for answer in answers if answer.correct]
    kept = wrong[:max(SHOWN // 2, SHOWN - len(right))]
    return right[:SHOWN - len(kept)] + kept


def _row(answer: Answer, encoder: Encoder, max_new_tokens: int) -> dict:
    sample = answer.sample
    return {
        "task": answer.task, "key": sample.key,
        "images": [data_address(image, image_extension(image)) for image in sample.images],
        "tiles": [] if answer.refused else _tiles(sample, encoder, max_new_tokens),
        "prompt": _prompt(sample), "answer": answer.text if not answer.refused else f"(not asked: {answer.refused})",
        "truth": " / ".join(answer.truths), "correct": answer.correct,
    }


def _prompt(sample: Sample) -> str:
    turns = sample.turns[:-1] if sample.turns[-1].role == "assistant" else sample.turns
    return "\n".join(turn.text.replace(IMAGE_PLACEHOLDER, "").strip() for turn in turns)


def _tiles(sample: Sample, encoder: Encoder, max_new_tokens: int) -> list[dict]:
    """The tiles as the model gets them, with their tags and places."""
    encoded = encoder.encode_prompt(sample, reserve=max_new_tokens)
    found = []
    for seen in seen_tiles(encoded, grids_of(sample, encoder, len(encoded.tiles)), encoder):
        place = {} if seen.place is None else dict(zip(("col", "row"), seen.place, strict=True))
        found.append({"tag": seen.tag, "image": seen.picture, "png": seen.address(), **place})
    return found
