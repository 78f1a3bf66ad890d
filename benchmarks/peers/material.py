"""The shards that all loaders read: crops of scikit-image's photographs, each with a question and an answer of usual length.

Plain webdataset tars by the project's own writer, made once and kept; the name of their folder says what they were made of.
"""

import os
import random
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from benchmarks.data_path import make_jpegs
from data_prep.shards import write_shards
from nvlm_train.contracts import Sample, Turn
from nvlm_train.data.index import FOLDER_INDEX

VERSION = 1     # raise it when other samples are made
SHARDS = 8      # a multiple of every number of workers tried, so that each gets as many samples as the others

QUESTIONS = ("What can be seen in this picture?", "Describe the picture in a few sentences.", "What is the main subject, and what is around it?",
             "Is this picture taken indoors or outdoors? Explain what tells you so.", "Which colours stand out, and where are they?",
             "Write a detailed caption for the picture, and name anything that is unusual about it.")
SUBJECTS = ("a woman in an orange suit", "a cup of coffee on a saucer", "a cat with green eyes", "a rocket on its launch pad",
            "the person in the foreground", "a wooden table", "the flag behind her", "a small spoon", "the tower to the left")
VERBS = ("is standing in front of", "is partly hidden by", "is lit from the side by", "is reflected in", "is next to", "looks towards",
         "stands out against", "is slightly blurred beside")
OBJECTS = ("a plain dark background", "soft daylight from a window", "a model of a space shuttle", "rows of steel beams", "a clear blue sky",
           "the edge of the frame", "a striped cloth", "several smaller objects that are hard to make out", "a bright white surface")
ENDINGS = ("which draws the eye to the centre", "as one would expect in a portrait", "so the picture seems calm", "and nothing else moves",
           "although the lower corner is cut off", "with fine detail in the shadows")


def _sentence(draw: random.Random) -> str:
    text = f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(OBJECTS)}, {draw.choice(ENDINGS)}."
    return text[0].upper() + text[1:]


def make_samples(count: int) -> Iterator[Sample]:
    """Samples of one picture, a question and an answer of one to six sentences (20 to 130 words)."""
    draw = random.Random(0)
    for number, jpeg in enumerate(make_jpegs(count)):
        answer = " ".join(_sentence(draw) for _ in range(draw.randint(1, 6)))
        yield Sample(f"photograph-{number:06d}", "photographs", (jpeg,), (Turn("user", draw.choice(QUESTIONS)), Turn("assistant", answer)))


def shard_folder(work: Path, samples: int) -> Path:
    """The folder of indexed shards with `samples` samples under `work`, made if it is not there yet."""
    made_by = f"pillow{version('pillow')}-skimage{version('scikit-image')}"
    folder = work / "shards" / f"v{VERSION}-{samples}-{made_by}"
    if not (folder / FOLDER_INDEX).is_file():
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        try:
            write_shards(temporary, make_samples(samples), -(-samples // SHARDS))
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
