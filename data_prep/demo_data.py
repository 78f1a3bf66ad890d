"""The demo's data, from three packages and nothing downloaded: shapes (easy_vqa), rendered text, and text-only puzzles.

Training and test material is disjoint: easy_vqa's own split of pictures; other photographs behind the rendered text; puzzles
whose question occurs in the test set are left out of training. Everything follows from the seed.

The folders of shards (`builtin:demo/NAME`):
    captions, transcripts       of shapes, of rendered text             (pretraining)
    shapes, reading             conversations and questions about them  (finetuning)
    text                        sums, without a picture                 (finetuning's text-only blend)
    told                        pictures told in words, and questions   (made the demo's language model)
    easy_vqa_test, rendered_text_test, text_test                        (evaluation: one question each)
"""

import random
from collections.abc import Callable, Iterator

from data_prep import easy_vqa_facts, phrases, puzzles, rendered_text
from nvlm_train.contracts import IMAGE_PLACEHOLDER, Sample, Turn

SEED = 7
RENDERED = 4000         # training pictures of text, transcribed in stage 1 and asked about in stage 2
PUZZLES = 24000         # text-only training questions
TEST = 400              # questions of each test set
QUESTIONS = 5           # most questions in one conversation about a shape


def _captioned() -> Iterator[tuple[easy_vqa_facts.Picture, str]]:
    """The training pictures whose colour and shape the package's answers tell, each with its caption."""
    return ((picture, phrases.shape_caption(picture.color, picture.shape)) for picture in easy_vqa_facts.pictures("train")
            if picture.color and picture.shape)


def shape_captions() -> Iterator[Sample]:
    """Captions of training pictures."""
    random_ = random.Random(f"shape captions/{SEED}")
    for picture, caption in _captioned():
        yield question_sample("easy_vqa", f"caption-{picture.number}", picture.path.read_bytes(),
                              [(random_.choice(phrases.CAPTION_REQUESTS), caption)])


def shape_conversations() -> Iterator[Sample]:
    """The training pictures, each with up to `QUESTIONS` of its questions in random order."""
    random_ = random.Random(f"shape conversations/{SEED}")
    for picture in easy_vqa_facts.pictures("train"):
        questions = random_.sample(picture.questions, min(QUESTIONS, len(picture.questions)))
        yield question_sample("easy_vqa", f"train-{picture.number}", picture.path.read_bytes(), questions)


def shape_test() -> Iterator[Sample]:
    """`TEST` questions of the package's own test split, one to a sample, drawn evenly over its pictures' questions."""
    asked = shape_test_questions()
    for index in shape_test_chosen(len(asked)):
        picture, question = asked[index]
        yield question_sample("easy_vqa", f"test-{index}", picture.path.read_bytes(), [question])


def shape_test_questions() -> list[tuple[easy_vqa_facts.Picture, tuple[str, str]]]:
    """All questions of the package's test split, each with its picture."""
    return [(picture, question) for picture in easy_vqa_facts.pictures("test") for question in picture.questions]


def shape_test_chosen(count: int) -> list[int]:
    """Which of `count` questions the demo asks, ascending."""
    return sorted(random.Random(f"shape test/{SEED}").sample(range(count), TEST))


def transcripts() -> Iterator[Sample]:
    """The training pictures of text, each with its transcript."""
    random_ = random.Random(f"transcripts/{SEED}")
    for index, (_, text, png) in enumerate(rendered_text.pictures("train", RENDERED, SEED)):
        request = random_.choice(phrases.READING_REQUESTS)
        yield question_sample("rendered_text", f"transcript-{index}", png, [(request, text)])


def reading_questions(split: str, count: int, seed: int = SEED) -> Iterator[Sample]:
    """Pictures of text of one split, each with a question that names the kind of text."""
    random_ = random.Random(f"reading/{split}/{seed}")
    for index, (kind, text, png) in enumerate(rendered_text.pictures(split, count, seed)):
        request = random_.choice(phrases.WORD_QUESTIONS if kind == "word" else phrases.NUMBER_QUESTIONS)
        yield question_sample("rendered_text", f"{split}-{index}", png, [(request, text)])


def puzzle_samples(split: str) -> Iterator[Sample]:
    """Text-only questions of one split."""
    questions = {"train": lambda: puzzles.training(PUZZLES, TEST, SEED), "test": lambda: puzzles.test(TEST, SEED)}[split]()
    for index, (task, question, answer) in enumerate(questions):
        yield question_sample("text_only", f"{split}-{index}", None, [(question, answer)], task)


def told_pictures() -> Iterator[Sample]:
    """Training pictures told in words, with questions about them: what a language model can know of shapes without seeing."""
    random_ = random.Random(f"told/{SEED}")
    for picture, caption in _captioned():
        asked = random_.sample(picture.questions, 2)
        asked.insert(0, (random_.choice(phrases.CAPTION_REQUESTS), caption))
        yield question_sample("told", f"shape-{picture.number}", None, [(f"{caption}\n{asked[0][0]}", asked[0][1]), *asked[1:]])
    for index in range(RENDERED):
        text = random_.choice(phrases.WORDS) if index % 2 else str(random_.randrange(10, 100))
        asked = [(random_.choice(phrases.READING_REQUESTS), text),
                 (random_.choice(phrases.WORD_QUESTIONS if index % 2 else phrases.NUMBER_QUESTIONS), text)]
        random_.shuffle(asked)
        yield question_sample("told", f"text-{index}", None, [(f"{text}\n{asked[0][0]}", asked[0][1]), *asked[1:]])


def question_sample(source: str, key: str, image: bytes | None, questions: list[tuple[str, str]], task: str | None = None) -> Sample:
    """A sample of questions and answers; the picture, if any, comes before the first question."""
    turns = [Turn(role, text) for pair in questions for role, text in zip(("user", "assistant"), pair)]
    if image is not None:
        turns[0] = Turn("user", f"{IMAGE_PLACEHOLDER}\n{turns[0].text}")
    return Sample(f"{source}-{key}", source, (image,) if image is not None else (), tuple(turns), {"task": task or source})


SETS: dict[str, Callable[[], Iterator[Sample]]] = {
    "captions": shape_captions,
    "transcripts": transcripts,
    "shapes": shape_conversations,
    "reading": lambda: reading_questions("train", RENDERED),
    "text": lambda: puzzle_samples("train"),
    "told": told_pictures,
    "easy_vqa_test": shape_test,
    "rendered_text_test": lambda: reading_questions("test", TEST),
    "text_test": lambda: puzzle_samples("test"),
}
