"""The same pretraining steps with the vision encoder computing, and with its features read from beside the shards.
`python -m benchmarks.features`

The model is InternViT-300M with Qwen2-1.5B (recipe nvlm_d_2b) made about 90 times smaller in both parts, so that the encoder has
a similar share of the work; the shares of the large models, by the same arithmetic, are printed beside it. One tile a picture and
one caption, as in pretraining. Seconds include waiting for data; the two ways take turns, and of each step the fastest round
counts. CPU seconds, of all threads, say the same on a machine that has other work.
"""

import argparse
import io
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.results import tell
from benchmarks.timing import name_of, seconds, took
from data_prep.shards import write_shards
from nvlm_train.config.compose import compose
from nvlm_train.config.schema import Run
from nvlm_train.contracts import Sample, Turn
from nvlm_train.data.encode import Encoder
from nvlm_train.data.features import FeatureKey, feature_key
from nvlm_train.data.loader import build_loader
from nvlm_train.data.tokenizer import load_tokenizer
from nvlm_train.engine.megatron import MegatronEngine
from nvlm_train.geometry import geometry_of
from nvlm_train.model.accounting import SampleWork, trained_components, useful_flops
from nvlm_train.parallel.device import choose_device
from nvlm_train.training.cache_features import cache_features_command

SIZES = (
    "model.vision.layers=8", "model.vision.hidden=192", "model.vision.heads=4", "model.vision.ffn=768",
    "model.vision.tile_size=112", "model.vision.patch=7", "model.language.layers=6", "model.language.hidden=384",
    "model.language.heads=6", "model.language.kv_heads=2", "model.language.head_dim=64", "model.language.ffn=1792",
    "data.max_tokens=256", "data.pack_tokens=512")
LARGE = ("nvlm_d_2b", "nvlm_d_72b")
CAPTION = 40        # tokens of text beside a tile, for the shares


def pictures(count: int, side: int) -> Iterator[Sample]:
    """Smooth noise as JPEG, and a caption of a dozen words."""
    random = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((2 * side, 2 * side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        words = " ".join(random.choice(["a", "red", "large", "square", "beside", "the", "blue", "circle"], 12))
        turns = Turn("user", "<image>"), Turn("assistant", words)
        yield Sample(f"picture-{number:05d}", "benchmark", (file.getvalue(),), turns)


def encoder_share(run: Run) -> float:
    """The encoder's part of a pretraining step's useful operations, at one tile and a caption."""
    work = SampleWork(tokens=geometry_of(run.model).tokens + CAPTION, tiles=1, supervised=CAPTION)
    flops = useful_flops(run.model, trained_components(run.model, run.train), [work])
    return flops.vision / flops.total


def train(run: Run, key: FeatureKey | None) -> dict[str, list[float]]:
    """Loss, seconds and CPU seconds of every step, from the same start."""
    steps: dict[str, list[float]] = {"loss": [], "seconds": [], "cpu_seconds": []}
    tokenizer = load_tokenizer(run.model.tokenizer, run.data.template)
    with closing(MegatronEngine(run)) as engine, build_loader(run, tokenizer, 0, 1, features=key) as loader:
        batches = iter(loader)
        for _ in range(run.train.steps):
            both = took(lambda: steps["loss"].append(engine.train_step(next(batches), run.train.lr).loss))
            steps["seconds"].append(both.seconds)
            steps["cpu_seconds"].append(both.cpu_seconds)
    return steps


def measure(run: Run, rounds: int) -> dict:
    """Both ways in turn, after the features have been cached."""
    caching = seconds(lambda: cache_features_command([run]))
    with closing(MegatronEngine(run)) as engine:
        encoder = Encoder(run.model, run.data, load_tokenizer(run.model.tokenizer, run.data.template))
        key = feature_key(encoder, engine.encoder_fingerprint(), engine.dtype)
    done: dict[str, list[dict]] = {"computed": [], "cached": []}
    for _ in range(rounds):
        done["computed"].append(train(run, None))
        done["cached"].append(train(run, key))
    found = {name: {unit: _fastest([steps[unit] for steps in way]) for unit in ("seconds", "cpu_seconds")}
             for name, way in done.items()}
    pairs = zip(done["computed"][0]["loss"], done["cached"][0]["loss"], strict=True)
    return {**found, "speed_up": {unit: found["computed"][unit] / found["cached"][unit] for unit in ("seconds", "cpu_seconds")},
            "largest_relative_loss_difference": max(abs(a - b) / a for a, b in pairs), "seconds_to_cache": caching,
            "bytes_per_tile": {"features": key.tile_bytes, "pixels": 3 * encoder.geometry.tile_size**2}}


def _fastest(rounds: Sequence[Sequence[float]]) -> float:
    """Mean over the steps after the first, which warms up, of each step's fastest round."""
    return statistics.mean(min(values) for values in list(zip(*rounds, strict=True))[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6, help="of each round")
    parser.add_argument("--batch", type=int, default=16, help="samples a step")
    parser.add_argument("--samples", type=int, default=96, help="pictures in the shards")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where to put shards and features; default: a temporary folder")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that differ")
    parser.add_argument("--json", metavar="FILE", help="also write the result there")
    options = parser.parse_args()
    with nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "shards"
        settings = ["recipe=nvlm_d_tiny", "stage=pretrain", *SIZES, f"train.steps={options.steps}",
                    f"train.global_batch={options.batch}", "train.warmup_steps=0", f"data.blend={{benchmark:{{path:{data}}}}}",
                    "data.validation={}", f"run.dir={folder}/run"]
        run = compose([*settings, *options.overrides])[0]
        write_shards(data, pictures(options.samples, run.model.vision.tile_size))
        result = {"device": name_of(choose_device(run.run.device)), **vars(options),
                  "encoder_share": {"here": encoder_share(run)} | {
                      name: encoder_share(compose([f"recipe={name}", "stage=pretrain"])[0]) for name in LARGE},
                  **measure(run, options.rounds)}
    _show(result)
    tell(result, options.json)
    return 0


def _show(result: dict) -> None:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in result["encoder_share"].items())
    print(f"the encoder's share of the operations: {shares}")
    print(f"caching {result['samples']} tiles took {result['seconds_to_cache']:.1f} s")
    for name in ("computed", "cached"):
        seconds, cpu = result[name]["seconds"], result[name]["cpu_seconds"]
        print(f"{name:<10}{seconds * 1e3:>9.0f} ms/step{cpu * 1e3:>9.0f} CPU ms/step{result['batch'] / seconds:>9.1f} samples/s")
    faster, size = result["speed_up"], result["bytes_per_tile"]
    print(f"{faster['seconds']:.2f} times as fast, {faster['cpu_seconds']:.2f} in CPU time; losses differ by at most "
          f"{result['largest_relative_loss_difference']:.1e} of their value")
    print(f"a tile takes {size['features']:,} bytes as features, {size['pixels']:,} as pixels")


if __name__ == "__main__":
    sys.exit(main())
