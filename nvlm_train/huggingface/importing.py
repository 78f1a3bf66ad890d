"""`nvlm import`: a published model as a folder of weights under our names (engine/weights_folder.py). See docs/importing.md.

Streamed: one tensor of ours at a time, out of memory-mapped files into files of at most half a GiB, each of which is hashed
while the next is written. Memory stays at a layer or two however large the model is.
"""

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from nvlm_train.engine.manifest import FileRecord, record_file, versions
from nvlm_train.engine.weights_folder import TOKENIZER, TensorRecord, WeightsFolder
from nvlm_train.huggingface.import_plan import ImportPlan
from nvlm_train.huggingface.new_folder import new_folder
from nvlm_train.huggingface.progress import progress
from nvlm_train.huggingface.shard_format import INDEX, NAMES
from nvlm_train.huggingface.shard_writer import ShardWriter, shards_of
from nvlm_train.huggingface.tokenizer_file import TokenizerFile, prepare_tokenizer

LIMIT = 512 * 2**20     # bytes of a file of tensors, unless one tensor is larger

log = logging.getLogger(__name__)


def tokenizer_of(plan: ImportPlan) -> TokenizerFile | None:
    """The tokenizer.json that comes with the weights; None for an encoder, and where there is none. Raises CheckpointError."""
    language, contents = plan.sizes.language, plan.source.tokenizer
    return None if language is None or contents is None else prepare_tokenizer(contents, language.vocab, plan.source.name)


def remarks(plan: ImportPlan) -> Iterator[str]:
    """What a user should know of an import, a sentence each."""
    source = plan.source
    if plan.licence:
        yield f"licence: {plan.licence}" + (". It does not allow commercial use" if "-nc" in plan.licence.lower() else "")
    elif source.config.get("model_type") == "NVLM_D":
        yield "the source names no licence; NVIDIA's NVLM-D-72B is under CC-BY-NC-4.0, which does not allow commercial use"
    else:
        yield "the source names no licence: read the publisher's before you use or share the weights"
    for reason, names in plan.left_out.items():
        yield f"{len(names)} tensors are not needed and left out: {reason}"
    if plan.dummy_heads:
        yield f"{plan.dummy_heads} dummy heads of the vision encoder are left out; they are added again as a layout needs them"
    if plan.sizes.language is None:
        return
    if source.tokenizer is None:
        yield (f"{source.name} has no tokenizer.json, which training needs. Make one where transformers is installed, and put it "
               "beside the weights: python -c \"from transformers import AutoTokenizer as T; "
               f"T.from_pretrained('{source.name}', use_fast=True).save_pretrained('made')\"")
    elif note := tokenizer_of(plan).note:
        yield note


def write_import(plan: ImportPlan, target: Path) -> WeightsFolder:
    """Carry a plan out. Raises CheckpointError (a damaged source, dummy heads that are none), ConfigError (the target exists),
    TrainingError (the disk); then nothing is left behind."""
    tokenizer = tokenizer_of(plan)
    with new_folder(target, plan.size) as partial:
        files, places = _write_tensors(plan, partial)
        if tokenizer is not None:
            (partial / TOKENIZER).write_bytes(tokenizer.contents)
            files[TOKENIZER] = record_file(partial / TOKENIZER, durable=True)
        source = {"repository": plan.repository, "licence": plan.licence, "config": dict(plan.source.config),
                  "left_out": plan.left_out, "dummy_heads": plan.dummy_heads}
        made = WeightsFolder(
            path=partial, sizes=plan.sizes, source=source, files=files, versions=versions(),
            tokenizer=None if tokenizer is None else hashlib.sha256(tokenizer.contents).hexdigest(),
            tensors={tensor.name: TensorRecord(NAMES[tensor.dtype], tensor.shape, places[tensor.name])
                     for tensor in plan.tensors})
        made.write()
    return WeightsFolder.read(target)


def _write_tensors(plan: ImportPlan, folder: Path) -> tuple[dict[str, FileRecord], dict[str, str]]:
    """(name -> record of every file, tensor -> name of its file)."""
    places: dict[str, str] = {}
    hashing: dict[str, Future[FileRecord]] = {}
    with ThreadPoolExecutor(1, "hashing") as pool, progress(f"importing {plan.source.name}", plan.size) as advance:
        with ShardWriter(folder, plan.tensors, LIMIT) as writer:
            entries = iter(plan.entries)
            for file, shard in zip(writer.files, shards_of(plan.tensors, LIMIT), strict=True):
                for tensor, entry in zip(shard, entries, strict=False):     # the next file goes on where this one ends
                    writer.write(entry.ours, entry.join([plan.source.tensor(name) for name in entry.theirs]))
                    places[entry.ours] = file
                    advance(tensor.size)
                writer.close_file()
                hashing[file] = pool.submit(record_file, folder / file, durable=True)
        records = {name: future.result() for name, future in hashing.items()}
    if (folder / INDEX).is_file():
        records[INDEX] = record_file(folder / INDEX, durable=True)
    return records, places
