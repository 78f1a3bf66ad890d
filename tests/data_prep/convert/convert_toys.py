"""What the converters' tests are made of: pictures, dataset folders, and a conversion read back from its shards."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data_prep.convert.families import converter
from data_prep.passes import run_pass
from nvlm_train.contracts import Sample
from nvlm_train.data.shards import ShardFolder


def picture(width: int = 40, height: int = 20, color: str = "red", kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, kind, **options)
    return file.getvalue()


def lay_out(root: Path, content: dict) -> Path:
    """Write a dataset folder: bytes as they are, text as UTF-8, a list under *.jsonl as lines, everything else as JSON."""
    for name, value in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, bytes):
            path.write_bytes(value)
        elif isinstance(value, str):
            path.write_text(value, encoding="utf-8")
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(line) + "\n" for line in value), encoding="utf-8")
        else:
            path.write_text(json.dumps(value), encoding="utf-8")
    return root


@dataclass(frozen=True)
class Converted:
    samples: dict[str, Sample]
    rejected: dict[str, str]
    details: dict[str, str]
    manifest: dict

    @property
    def only(self) -> Sample:
        [sample] = self.samples.values()
        return sample


def convert(root: Path, family: str, workers: int = 1, **options) -> Converted:
    """Convert `root` as the dataset `toy`, and read everything back."""
    out = root.with_name(f"{root.name}-out-{len(list(root.parent.iterdir()))}")
    manifest = run_pass("convert", converter(family, root, options, "toy"), out, workers)
    shards = ShardFolder(out, "toy")
    samples = [shards.read(number) for number in range(len(shards))]
    lines = [json.loads(line) for path in sorted((out / "passed").glob("*.rejected.jsonl")) for line in path.read_text().splitlines()]
    assert manifest["in"] == len(samples) + len(lines)
    return Converted({sample.key: sample for sample in samples}, {line["key"]: line["reason"] for line in lines},
                     {line["key"]: line["detail"] for line in lines}, manifest)


def said(sample: Sample) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in sample.turns]
