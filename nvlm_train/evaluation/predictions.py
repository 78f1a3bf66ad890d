"""Answers as rows of predictions.jsonl, the report's gallery (the format is described in `training.report`)."""

import base64
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from nvlm_train.contracts import IMAGE_PLACEHOLDER, Sample
from nvlm_train.data.encode import Encoder
from nvlm_train.data.images import image_extension, image_size
from nvlm_train.data.tags import tile_tags
from nvlm_train.data.tiling import Grid, choose_grid, tiles_of_grid
from nvlm_train.errors import DataError
from nvlm_train.evaluation.tasks import Answer
from nvlm_train.geometry import FEWER_TILES

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
        "images": [_address(image, image_extension(image)) for image in sample.images],
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
    tiles, found = iter(encoded.tiles), []
    for image, grid in enumerate(_grids(sample, encoder, len(encoded.tiles))):
        for number, tag in enumerate(tile_tags(encoder.model.tags, grid, encoder.geometry.tile_size, encoder.data.thumbnail)):
            tile = {"tag": tag, "image": image, "png": _address(_png(next(tiles)), "png")}
            if number < grid[0] * grid[1] and grid != (1, 1):
                tile.update(col=number % grid[0], row=number // grid[0])
            found.append(tile)
    return found


def _grids(sample: Sample, encoder: Encoder, tiles: int) -> list[Grid]:
    """The grid of each picture, found by the number of tiles that encoding gave: a long sample gets fewer."""
    data, size = encoder.data, encoder.geometry.tile_size
    for limit in (data.max_tiles, *FEWER_TILES):
        grids = [choose_grid(*image_size(image), limit, size) for image in sample.images]
        if sum(tiles_of_grid(grid, data.thumbnail) for grid in grids) == tiles:
            return grids
    raise DataError(f"{sample.key}: no limit on tiles gives its {tiles} tiles; encoder and gallery disagree")


def _png(tile_CPP: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(tile_CPP.transpose(1, 2, 0))).save(out, "PNG")
    return out.getvalue()


def _address(image: bytes, kind: str) -> str:
    kind = "jpeg" if kind == "jpg" else kind
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
