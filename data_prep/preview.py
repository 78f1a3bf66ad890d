"""Shows samples of an indexed folder as the model will see them: pictures, grids, which tokens are learned and which read what."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from data_prep.preview_page import encoded_sample, write_preview
from nvlm_train.config import schema
from nvlm_train.config.compose import compose
from nvlm_train.config.overlay import STAGES
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
        found, plan, encoded = encoded_sample(folder, encoder, sample)
        sizes = [image_size(image) for image in found.images]
        pictures = [f"  image    {width}x{height} pixels, {cols}x{rows} tiles"
                    for (width, height), (cols, rows) in zip(sizes, plan.grids, strict=True)]
        return "\n".join([encoder.describe(encoded), *pictures])
    except SampleRefused as refused:
        return f"{folder.key(sample)} ({folder.source}): left out, {refused}"


def main(arguments: list[str]) -> int:
    """`python -m data_prep preview FOLDER ...`"""
    parser = argparse.ArgumentParser(prog="python -m data_prep preview", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with pictures, grids, tags and every token")
    parser.add_argument("--count", type=int, help="samples, chosen at random (default 3, on a page 24)")
    parser.add_argument("--seed", type=int, default=0, help="another seed shows others")
    parser.add_argument("--recipe", help="see them as this recipe does; the options below change it")
    parser.add_argument("--stage", choices=STAGES, default=STAGES[-1], help="of the recipe (default %(default)s)")
    parser.add_argument("--tokenizer", help="tiny, or the path of a tokenizer.json")
    parser.add_argument("--architecture", choices=ARCHITECTURES, help="which model's sequence to show")
    parser.add_argument("--format", choices=FORMATS)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--max-tiles", type=int)
    options = parser.parse_args(arguments)
    encoder = _encoder(options)
    folder = ShardFolder(options.folder, options.folder.name)
    count = min(options.count or (24 if options.html else 3), len(folder))
    chosen = [permuted(place, len(folder), key_of("preview", options.seed)) for place in range(count)]
    if options.html:
        write_preview(options.html, folder, encoder, chosen)
        print(f"{options.html}: {count} of {len(folder):,} samples")
    else:
        print("\n".join(preview(folder, encoder, sample) for sample in chosen))
    return 0


def _encoder(options: argparse.Namespace) -> Encoder:
    """Of the recipe, else of the defaults; with what the options say instead."""
    run = compose([f"recipe={options.recipe}", f"stage={options.stage}"])[0] if options.recipe else schema.Run("none", STAGES[-1])
    model = {"architecture": options.architecture, "tokenizer": options.tokenizer}
    data = {"format": options.format, "max_tokens": options.max_tokens, "pack_tokens": options.max_tokens, "max_tiles": options.max_tiles}
    run = replace(run, model=replace(run.model, **_given(model)), data=replace(run.data, **_given(data)))
    # Another tokenizer brings the template of its own model.
    tokenizer = load_tokenizer(run.model.tokenizer, None if options.tokenizer else run.data.template)
    return Encoder(run.model, replace(run.data, template=tokenizer.template.name), tokenizer)


def _given(values: Mapping) -> dict:
    return {key: value for key, value in values.items() if value is not None}
