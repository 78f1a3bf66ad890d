"""The tiny dataset: a few hundred self-made samples that need no package but Pillow.

Pictures are one coloured shape on a plain ground: some fit one 32-px tile, most are larger; a few samples hold two pictures,
and the `text` folder holds none. It exists so that every recipe can be tried within a minute, without data of one's own; it is
too small to teach a model anything worth keeping.
"""

import io
import random
from collections.abc import Callable, Iterator
from functools import partial

from PIL import Image, ImageDraw

from data_prep import phrases
from nvlm_train.contracts import IMAGE_PLACEHOLDER, Sample, Turn

CANVASES = ((32, 32), (64, 32), (32, 64), (64, 64), (96, 64), (150, 50), (128, 128))   # width, height in pixels
COUNTS = {"pretrain": 160, "sft": 200, "text": 120, "validation": 60}
SEED = 20240917

Made = tuple[str, tuple[bytes, ...], tuple[Turn, ...]]   # task, pictures, conversation


def samples(folder: str) -> Iterator[Sample]:
    """The samples of one folder, always the same ones."""
    random_ = random.Random(f"tiny/{folder}/{SEED}")
    makers = MAKERS[folder]
    for index in range(COUNTS[folder]):
        task, images, turns = makers[index % len(makers)](random_)
        yield Sample(f"tiny-{folder}-{index:04d}", f"tiny/{folder}", images, turns, {"task": task})


def _caption(random_: random.Random) -> Made:
    color, shape, picture = _picture(random_)
    request = f"{IMAGE_PLACEHOLDER}\n{random_.choice(phrases.CAPTION_REQUESTS)}"
    return "caption", (picture,), (Turn("user", request), Turn("assistant", phrases.shape_caption(color, shape)))


def _conversation(random_: random.Random) -> Made:
    color, shape, picture = _picture(random_)
    turns = []
    for question, answer in random_.sample(phrases.shape_questions(color, shape), 3):
        turns += [Turn("user", question), Turn("assistant", answer)]
    turns[0] = Turn("user", f"{IMAGE_PLACEHOLDER}\n{turns[0].text}")
    return "shapes", (picture,), tuple(turns)


def _question(random_: random.Random) -> Made:
    color, shape, picture = _picture(random_)
    question, answer = random_.choice(phrases.shape_questions(color, shape))
    return "shapes", (picture,), (Turn("user", f"{IMAGE_PLACEHOLDER}\n{question}"), Turn("assistant", answer))


def _pair(random_: random.Random) -> Made:
    first, second = _picture(random_), _picture(random_)
    question = f"{IMAGE_PLACEHOLDER}\n{IMAGE_PLACEHOLDER}\nAre both shapes of the same color?"
    answer = "yes" if first[0] == second[0] else "no"
    return "pairs", (first[2], second[2]), (Turn("user", question), Turn("assistant", answer))


def _sum(random_: random.Random) -> Made:
    first, second = random_.randrange(10), random_.randrange(10)
    return "sums", (), (Turn("user", f"Calculate {first} + {second}."), Turn("assistant", str(first + second)))


MAKERS: dict[str, tuple[Callable[[random.Random], Made], ...]] = {
    "pretrain": (_caption,),
    "sft": (_conversation, _conversation, _conversation, _pair),
    "text": (_sum,),
    "validation": (_question, _question, _sum),
}


def _picture(random_: random.Random) -> tuple[str, str, bytes]:
    """(colour, shape, encoded picture): PNG mostly, every fourth or so a JPEG."""
    color, shape = random_.choice(sorted(phrases.COLORS)), random_.choice(phrases.SHAPES)
    width, height = random_.choice(CANVASES)
    canvas = Image.new("RGB", (width, height), tuple(random_.randrange(225, 256) for _ in range(3)))
    side = random_.randint(min(width, height) // 3, min(width, height) * 3 // 4)
    x, y = random_.randint(0, width - side), random_.randint(0, height - side)
    box = (x, y, x + side - 1, y + side - 1)
    ink = ImageDraw.Draw(canvas)
    if shape == "circle":
        ink.ellipse(box, fill=phrases.COLORS[color])
    elif shape == "rectangle":
        ink.rectangle((x, y, x + side - 1, y + side * 2 // 3), fill=phrases.COLORS[color])
    else:
        ink.polygon(((x + side // 2, y), (x, y + side - 1), (x + side - 1, y + side - 1)), fill=phrases.COLORS[color])
    out = io.BytesIO()
    if random_.random() < 0.25:
        canvas.save(out, "JPEG", quality=90)
    else:
        canvas.save(out, "PNG")
    return color, shape, out.getvalue()


SETS: dict[str, Callable[[], Iterator[Sample]]] = {folder: partial(samples, folder) for folder in COUNTS}
