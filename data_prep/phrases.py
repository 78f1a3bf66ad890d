"""The wording of the tiny and demo datasets: one home, so that the tiny tokenizer is trained on what the models will read.

Nothing here draws or reads a file. Every question has one short answer.
"""

COLORS = {
    "red": (214, 48, 49), "green": (39, 144, 70), "blue": (33, 87, 201), "yellow": (240, 200, 40),
    "gray": (128, 128, 128), "teal": (0, 140, 140), "black": (20, 20, 20), "brown": (130, 80, 40),
}
SHAPES = ("circle", "rectangle", "triangle")
SIZES = ("small", "large")
PLACES = ("left", "middle", "right", "top", "bottom")

WORDS = (
    "apple", "bridge", "candle", "dragon", "eagle", "forest", "garden", "hammer", "island", "jacket", "kitten", "lemon",
    "market", "needle", "ocean", "pencil", "queen", "rocket", "silver", "tiger", "umbrella", "valley", "window", "zebra",
)
"""Words that the rendered pictures show; lower case, no two alike."""

CAPTION_REQUESTS = ("Describe the image.", "What is in the image?", "Give a short caption of the image.")
READING_REQUESTS = ("Read the text in the image.", "What does the text say?", "Transcribe the text.")
WORD_QUESTIONS = ("What word is written?", "Which word does the image show?")
NUMBER_QUESTIONS = ("What number is written?", "Which number does the image show?")


def with_article(noun: str) -> str:
    """`a blue circle`, `an apple`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def shape_caption(color: str | None, shape: str | None) -> str:
    """Caption of a picture of one shape, saying only what is known. Raises ValueError if nothing is known."""
    if color is None and shape is None:
        raise ValueError("a caption needs a colour or a shape; neither is known")
    return with_article(" ".join(part for part in (color, shape or "shape") if part)) + "."


def shape_questions(color: str, shape: str) -> list[tuple[str, str]]:
    """Questions about a picture of one shape that name what is (or is not) there, each with its answer."""
    other_color = next(name for name in sorted(COLORS) if name > color) if color != max(COLORS) else min(COLORS)
    other_shape = SHAPES[(SHAPES.index(shape) + 1) % len(SHAPES)]
    return [
        ("what color is the shape?", color),
        (f"what is the color of the {shape}?", color),
        ("what shape is in the image?", shape),
        ("what shape does the image contain?", shape),
        (f"what is the {color} shape?", shape),
        (f"is there {with_article(color)} shape in the image?", "yes"),
        (f"is there {with_article(other_shape)}?", "no"),
        (f"does the image contain {with_article(other_color)} shape?", "no"),
        (f"does the image not contain {with_article(other_shape)}?", "yes"),
        (f"is no {shape} present?", "no"),
    ]
