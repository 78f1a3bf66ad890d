"""Shows samples of an indexed folder as the model will see them: pictures, grids, which tokens are learned and which read what."""

import argparse
from pathlib import Path

from nvlm_train.config import schema
from nvlm_train.data.chat import FORMATS
from nvlm_train.data.encode import Encoder
from nvlm_train.data.images import image_size
from nvlm_train.data.layout import ARCHITECTURES
from nvlm_train.data.permutation import key_of, permuted
from nvlm_train.data.shards import ShardFolder
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.errors import SampleRefused


def preview(folder: ShardFolder, encoder: Encoder, sample: int) -> str:
    """One sample for a person to check; a refused one with its reason. Raises DataError if the shard cannot be read."""
    try:
        found = folder.read(sample)
        sizes = [image_size(image) for image in found.images]
        plan = encoder.plan(encoder.text_tokens(found.turns, len(sizes)), sizes)
        pictures = [f"  image    {width}x{height} pixels, {cols}x{rows} tiles"
                    for (width, height), (cols, rows) in zip(sizes, plan.grids, strict=True)]
        return "\n".join([encoder.describe(encoder.encode(found, plan)), *pictures])
    except SampleRefused as refused:
        return f"{folder.key(sample)} ({folder.source}): left out, {refused}"


def main(arguments: list[str]) -> int:
    """`python -m data_prep preview FOLDER ...`"""
    stage = schema.Data()
    parser = argparse.ArgumentParser(prog="python -m data_prep preview", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--count", type=int, default=3, help="samples, chosen at random (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed shows others")
    parser.add_argument("--tokenizer", default="tiny", help="tiny, or the path of a tokenizer.json")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default=ARCHITECTURES[0], help="which model's sequence to show")
    parser.add_argument("--format", choices=FORMATS, default=stage.format)
    parser.add_argument("--max-tokens", type=int, default=stage.max_tokens)
    parser.add_argument("--max-tiles", type=int, default=stage.max_tiles)
    options = parser.parse_args(arguments)

    data = schema.Data(format=options.format, max_tokens=options.max_tokens, pack_tokens=options.max_tokens, max_tiles=options.max_tiles)
    encoder = Encoder(schema.Model(architecture=options.architecture), data, load_tokenizer(options.tokenizer))
    folder = ShardFolder(options.folder, options.folder.name)
    for place in range(min(options.count, len(folder))):
        print(preview(folder, encoder, permuted(place, len(folder), key_of("preview", options.seed))))
    return 0
