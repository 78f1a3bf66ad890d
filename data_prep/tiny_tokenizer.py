"""Rebuild the tiny tokenizer that the tiny and demo recipes ship with: `python -m data_prep.tiny_tokenizer [FILE]`.

A byte-level BPE of 1,024 entries with the text splitting of Qwen2's tokenizer, trained on the wording of this package's own
small datasets, so that a language model of a million parameters need not spend them on an embedding. Digits stand alone, which
is what makes small sums learnable. The corpus is spelled out below and needs no other package: the file comes out the same,
byte for byte, on every machine with the same version of `tokenizers`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep import phrases

VOCABULARY = 1024
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>")   # ids 0 to 3; the first one also pads
ASSET = Path(__file__).resolve().parents[1] / "nvlm_train" / "assets" / "tiny_tokenizer.json"

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

PROSE = """
A picture is cut into tiles, and every tile becomes a row of visual tokens that the language model reads like words.
A small copy of the whole picture, the thumbnail, comes last, so that the model sees both the details and the scene.
The model first learns to connect pictures with words while the language model and the vision encoder stay as they are.
Then it learns to follow instructions, and text without pictures is mixed in so that it does not forget what it knew.
The answer should be short, and it should say only what can be seen. If nothing can be read, the answer is none.
Read the question, look at the image, think about what is asked, and give the final answer in one or two words.
This text is here because a tokenizer needs some plain English: the, and, of, to, in, is, that, with, for, from, they, would.
There are many colors, shapes, numbers and letters; some are large, some are small, some are on the left or on the right.
Please write the result of the sum. How much is it? Count the objects above the line and below the box, then compare them.
Yes, there is more than one. No, there is not. The first is before the second, and the last comes after all the others.
The cat sat under the table while two children were playing outside with their friends from the other house.
When it was dark she walked back along the river, because the old road over the hill had been closed since winter.
He could not remember which of the three keys would open the door, so he tried each one, again and again.
People often ask how long it takes to learn something new; most of the time the honest answer is that it depends.
Every morning the train leaves at seven and arrives before eight, unless there is snow, wind or heavy rain.
If you know the length and the width of a field, you can find its area by multiplying these two numbers.
Some birds fly south in autumn and return in spring; others stay all year and eat what they can find.
Water, bread, cheese, fruit and a little sugar were everything that was left in the kitchen after the party.
Write a program that reads a list of names, removes what appears twice, and prints the result in alphabetical order.
An experiment should be described so well that another person could repeat it and come to the same conclusion.
She thought about the problem for a few minutes, drew a chart, and explained why the second method must be faster.
Our school has about five hundred students, twenty teachers, a large library and a small laboratory for science.
"""


def corpus() -> Iterator[str]:
    """The training text, repeated by how often the datasets say it."""
    for _ in range(40):
        yield "system\nFollow the user's instruction and answer questions."
        yield "user\n"
        yield "assistant\n"
        yield "<Image></Image>\n"
        yield "<tile_global_thumbnail><tile_global><tile_global_thumbnail0>"
        yield from (f"<tile_{tile}>" for tile in range(1, 13))
        yield from (f"<tile_x{x}_y{y}>" for x in range(3) for y in range(3))
        yield "<box> (0, 0), (1, 1) </box>"
    for _ in range(2):
        for color in phrases.COLORS:
            for shape in phrases.SHAPES:
                for question, answer in phrases.shape_questions(color, shape):
                    yield f"{question} {answer}"
                    yield answer
                yield phrases.shape_caption(color, shape)
                yield from (f"a {size} {color} {shape} on the {place}" for size in phrases.SIZES for place in phrases.PLACES)
    requests = phrases.CAPTION_REQUESTS + phrases.READING_REQUESTS + phrases.WORD_QUESTIONS + phrases.NUMBER_QUESTIONS
    for word in phrases.WORDS:
        for request in requests:
            yield f"{request}\nThe text says {word}.\n{word}"
    for first in range(10):
        for second in range(10):
            yield f"Calculate {first} + {second}. {first + second}"
            yield f"Calculate {first} - {second}. {first - second}"
            yield f"State the final answer to the following arithmetic problem: {first} + {second} ="
            yield f"What is the largest of these numbers: {first}, {second}? Sort them in ascending order. {second}, {first}"
    yield from PROSE.strip().splitlines() * 3


def build() -> Tokenizer:
    """Train the tokenizer. Same input, same output: ties between pairs of equal count are broken by their ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the corpus gave {tokenizer.get_vocab_size()} entries instead of {VOCABULARY}: it needs more text")
    return tokenizer


def main(arguments: list[str]) -> None:
    target = Path(arguments[0]) if arguments else ASSET
    target.write_text(build().to_str(pretty=True) + "\n", encoding="utf-8")
    print(f"{target}: {VOCABULARY} entries")


if __name__ == "__main__":
    main(sys.argv[1:])
