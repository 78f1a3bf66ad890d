"""`nvlm generate`: one question to a checkpoint; the answer is printed as it is written. Every rank runs it, the main one prints."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nvlm_train.config.schema import Run
from nvlm_train.contracts import EncodedSample, Sample, Turn
from nvlm_train.errors import ConfigError, DataError, SampleRefused
from nvlm_train.evaluation.opening import Model, open_model
from nvlm_train.generation.generator import Generator
from nvlm_train.generation.request import Request, Sampling
from nvlm_train.generation.text_stream import TextStream, printable


def generate_command(runs: Sequence[Run], options: Mapping) -> None:
    """Answer `options["prompt"]` about the pictures `options["image"]` (files; may be none), and print the answer.

    options: checkpoint, image, prompt, max_new_tokens, temperature, top_p, seed, json. Pictures stand before the prompt unless it holds
    as many `<image>`. Raises ConfigError, DataError.
    """
    images = tuple(Path(path).read_bytes() for path in options["image"])
    sample = Sample("prompt", "prompt", images, (Turn("user", options["prompt"]), Turn("assistant", "")))
    sampling = Sampling(options["max_new_tokens"], options["temperature"], options["top_p"], options["seed"])
    model = open_model(runs, options["checkpoint"])
    if images and model.blind:
        raise ConfigError(f"image={options['image'][0]}: {model.blind}")
    try:
        prompt = model.encoder.encode_prompt(sample, reserve=sampling.max_new_tokens)
    except SampleRefused as error:
        raise DataError(f"the question cannot be put: {error}") from error
    pieces = written(model, prompt, sampling)
    if options["json"]:
        facts = {"checkpoint": str(model.checkpoint), "images": options["image"], "prompt": options["prompt"], "answer": "".join(pieces)}
        _show(model, json.dumps(facts, ensure_ascii=False))
        return
    terminal = sys.stdout.isatty()
    for piece in pieces:
        _show(model, printable(piece) if terminal else piece, end="")
    _show(model, "")


def written(model: Model, prompt: EncodedSample, sampling: Sampling) -> Iterator[str]:
    """The answer, piece by piece as it is written; on replicas other than the first, which only go along, nothing."""
    generator, text = Generator(model.engine, model.encoder, slots=1), TextStream(model.encoder.tokenizer.decode)
    if model.engine.data_rank == 0:
        generator.submit(Request(prompt.key, prompt, sampling))
    while generator.goes_on():
        yield from (text.push(news.token) for news in generator.step() if news.token is not None)
    yield text.finish()


def _show(model: Model, text: str, end: str = "\n") -> None:
    if model.engine.is_main:
        print(text, end=end, flush=True)
