"""Checkpoints: the frame around the library's sharded files. See docs/checkpoints.md.

A save goes: check the disk → a fresh `.partial-…` folder → every rank writes its files, durably → index → manifest with the hash
of every file → one rename. Until that rename nothing exists that anyone would load, and the older checkpoints are untouched.
A load goes: manifest → is it this model? → every file's size and hash → are the keys and shapes right? → read.
All ranks take part in both, and both succeed on all ranks or raise on all of them.
"""

import json
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nvlm_train.engine import folders
from nvlm_train.engine.agree import on_every_rank, on_main
from nvlm_train.engine.folders import resolve
from nvlm_train.engine.interface import Engine
from nvlm_train.engine.manifest import FileRecord, Manifest, differences, problem_with_file, versions
from nvlm_train.engine.sharded_read import mismatches, read_state, wanted_contents
from nvlm_train.engine.sharded_write import ShardedWrite, size_of
from nvlm_train.errors import CheckpointError, NvlmError, TrainingError
from nvlm_train.model.freeze import is_cross_attention

__all__ = ["CheckpointStore", "SaveFacts", "load", "load_backbones", "resolve"]
BEST = "best.json"
VALIDATION_LOSS = "validation_loss"     # in SaveFacts.extra: makes the checkpoint a candidate for the best
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveFacts:
    """What the caller knows and the checkpoint records.

    config: the whole Run as plain data. fingerprint: see manifest.fingerprint. cursor: slots of the order consumed.
    rng: how randomness goes on after a resume; nothing per rank is stored (see docs/checkpoints.md). extra: anything JSON holds.
    Raises CheckpointError if something is not plain data: now, not after hours of training.
    """

    stage: str
    config: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    cursor: int
    rng: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            json.dumps(asdict(self))
        except (TypeError, ValueError) as problem:
            raise CheckpointError(f"these facts cannot go into a checkpoint's manifest: {problem}. Pass plain data") from None


class _PendingSave:
    """A save under way on this rank: planned, perhaps still being written by a thread."""

    def __init__(self, engine: Engine, write: ShardedWrite, partial: Path, target: Path, save_id: str, facts: SaveFacts,
                 step: int):
        self.engine, self.write, self.partial, self.target = engine, write, partial, target
        self.save_id, self.facts, self.step = save_id, facts, step
        self._written, self._problem, self._thread = None, None, None

    def start(self, asynchronous: bool) -> None:
        """Write now, or in a thread: that only if the tensors are held in host memory (CUDA's current device is per thread)."""
        if not asynchronous:
            self._run()
            return
        # A daemon: a run that fails elsewhere must not be held up by a save that nobody will publish.
        self._thread = threading.Thread(target=self._run, name="checkpoint-writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._written = self.write.write()
        except Exception as problem:  # noqa: BLE001 (raised by `result`, where all ranks hear of it)
            self._problem = problem

    @property
    def writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def result(self) -> Any:
        """What `finish` wants from this rank, once it is written; raises what the writing raised."""
        if self._thread is not None:
            self._thread.join()
        if self._problem is not None:
            raise self._problem
        return self._written


class CheckpointStore:
    """The checkpoints of one stage of one run.

    root: `<run.dir>/checkpoints/<stage>`. keep_last: how many of the newest stay; the best one always stays beside them.
    Every rank makes one and calls `save` and `finish` at the same points; the other methods are local.
    """

    def __init__(self, root: Path, keep_last: int):
        if keep_last < 1:
            raise TrainingError(f"run.keep_last={keep_last}: at least the newest checkpoint must be kept, set it to 1 or more")
        self.root, self.keep_last = Path(root), keep_last
        self._pending: _PendingSave | None = None

    # Looking

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, oldest first."""
        return list(folders.complete_steps(self.root))

    def latest(self) -> Path | None:
        """The newest complete checkpoint."""
        steps = folders.complete_steps(self.root)
        return steps[max(steps)] if steps else None

    def best(self) -> int | None:
        """The step marked best; None if none is, or the mark cannot be read."""
        try:
            return int(json.loads((self.root / BEST).read_text())["step"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as problem:
            _log.warning("%s cannot be read (%s): no checkpoint counts as the best", self.root / BEST, problem)
            return None

    # Changing

    def mark_best(self, step: int) -> None:
        """Mark a complete checkpoint as the best so far: it is kept whatever its age. Call on the main rank."""
        if step not in self.steps():
            raise CheckpointError(f"step {step} cannot be marked best: {self.root} has complete checkpoints of {self.steps()}")
        temporary = self.root / f"{BEST}.new"
        with temporary.open("w") as file:
            json.dump({"step": step}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.root / BEST)
        folders.sync_folder(self.root)

    def preflight(self, engine: Engine, needed: int = 0) -> None:
        """Before step 0: raise TrainingError on every rank if `needed` bytes could not be written. A collective."""
        on_main(engine, "checking the disk", lambda: folders.check_disk(self.root, needed), TrainingError)

    def rewind_to(self, engine: Engine, step: int) -> None:
        """Put checkpoints after `step` out of the way, for a run that goes on from there. A collective.

        They belong to a course of training that is being left: a later resume must not pick them up, and the pruning must not
        take them for the newest. They are renamed (`.aside-…`), never deleted.
        """
        def move() -> None:
            for later in [path for path in self._step_folders() if folders.step_of(path) > step]:
                _log.warning("training goes on from step %d: %s was put aside as %s", step, later, folders.set_aside(later).name)

        on_main(engine, "putting later checkpoints aside", move, CheckpointError)

    def save(self, engine: Engine, facts: SaveFacts, step: int, asynchronous: bool = False) -> None:
        """Write a checkpoint of `step`. A collective.

        asynchronous: returns once the state is copied to host memory; `finish` publishes it. An earlier asynchronous save is
        finished first, and its failure raised here.
        Raises TrainingError (disk, writing) or CheckpointError (the step exists), on every rank, leaving older checkpoints alone.
        """
        self.finish()
        save_id = on_main(engine, "preparing the save", lambda: uuid.uuid4().hex, TrainingError)
        target = self.root / folders.step_folder(step)
        partial = self.root / f"{folders.PARTIAL}{target.name}-{save_id[:8]}"
        on_main(engine, f"saving step {step}", lambda: self._prepare(target, partial), CheckpointError)
        try:
            write = ShardedWrite(engine, engine.sharded_state(loading=False), partial, save_id, hold=asynchronous)
            on_main(engine, f"saving step {step}", lambda: folders.check_disk(self.root, size_of(write.contents)), TrainingError)
        except NvlmError:
            self._drop(engine, partial)
            raise
        self._pending = _PendingSave(engine, write, partial, target, save_id, facts, step)
        self._pending.start(asynchronous)
        if not asynchronous:
            self.finish()

    def finish(self, wait: bool = True) -> bool:
        """Publish the save under way, if there is one. A collective whenever a save is under way.

        wait=False returns at once, with False, while some rank is still writing: to be called between steps.
        Raises TrainingError on every rank if writing failed on one; its partial files are removed, nothing else is.
        """
        pending = self._pending
        if pending is None:
            return True
        if not wait and pending.engine.any_rank(pending.writing):
            return False
        self._pending = None
        engine, doing = pending.engine, f"saving step {pending.step}"
        try:
            written = on_every_rank(engine, doing, pending.result, TrainingError)
            on_main(engine, doing, lambda: self._publish(pending, written), TrainingError)
        except TrainingError as problem:
            self._drop(engine, pending.partial)
            raise TrainingError(self._explained(problem, pending)) from problem
        return True

    def _prepare(self, target: Path, partial: Path) -> None:
        folders.check_disk(self.root)
        if target.exists():
            if (problem := folders.why_incomplete(target)) is None:
                raise CheckpointError(f"{target} exists already and is complete; checkpoints are never overwritten. "
                                      "Resume from it, or use another run.dir")
            aside = folders.set_aside(target)
            _log.warning("%s is no complete checkpoint (%s) and was put aside as %s", target, problem, aside.name)
        folders.remove_leftovers(self.root)
        partial.mkdir()

    def _publish(self, pending: _PendingSave, written: list) -> None:
        facts = pending.facts
        files = pending.write.finish(written)
        Manifest(save_id=pending.save_id, step=pending.step, stage=facts.stage, cursor=facts.cursor, config=facts.config,
                 fingerprint=facts.fingerprint, contents=pending.write.contents, files=files, rng=facts.rng, versions=versions(),
                 extra=facts.extra).write(pending.partial)
        folders.publish(pending.partial, pending.target)
        self._note_best(pending.step, facts.extra.get(VALIDATION_LOSS))
        self._prune(pending.step)

    def _note_best(self, step: int, loss: float | None) -> None:
        """Mark the step just published as the best if its validation loss is the lowest of all checkpoints that have one."""
        if loss is None:
            return
        best = self.best()
        known = Manifest.read(self.root / folders.step_folder(best)).extra.get(VALIDATION_LOSS) if best in self.steps() else None
        if known is None or loss < known:
            self.mark_best(step)

    def _prune(self, published: int) -> None:
        """Delete what is neither among the newest, nor the best, nor the one just published. Failing to is only reported."""
        steps = folders.complete_steps(self.root)
        kept = {*sorted(steps)[-self.keep_last:], published, self.best()}
        for step in set(steps) - kept:
            try:
                folders.remove(steps[step])
            except OSError as problem:
                _log.warning("the old checkpoint %s could not be removed: %s", steps[step], problem)

    def _step_folders(self) -> list[Path]:
        return sorted(path for path in self.root.iterdir() if folders.step_of(path) is not None) if self.root.is_dir() else []

    def _drop(self, engine: Engine, partial: Path) -> None:
        engine.barrier()    # no rank writes into it any more
        if engine.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        engine.barrier()    # gone for everybody, whatever the caller does next

    def _explained(self, problem: TrainingError, pending: _PendingSave) -> str:
        free, needed = shutil.disk_usage(self.root).free, size_of(pending.write.contents)
        latest = self.latest()
        good = latest.name if latest else "none yet"
        return (f"{problem}. The checkpoint needs about {folders.as_size(needed * 1.1)}; {self.root} now has "
                f"{folders.as_size(free)} free. The partial files were removed; the newest good checkpoint is {good}")


def load(path: Path, engine: Engine, expected_fingerprint: Mapping[str, Any], model_only: bool = False,
         allow: Sequence[str] = ()) -> Manifest:
    """Load a checkpoint into the engine, under whatever layout the engine has. A collective.

    path: a complete step folder (see `resolve`). expected_fingerprint: of the model at hand, see manifest.fingerprint.
    model_only: only the weights, and the optimizer starts afresh (another stage, evaluation); dtypes may then differ.
    allow: components or patterns of keys that the model or the checkpoint may lack; what the checkpoint lacks keeps its values.
    Returns the manifest. Raises CheckpointError on every rank if the checkpoint is incomplete, damaged, of another model, or asks
    for code to be run; the model is untouched then, unless reading itself failed (a disk that stops answering).
    """
    manifest = on_main(engine, f"reading {path}", lambda: _checked_manifest(Path(path), expected_fingerprint), CheckpointError)
    verify_files(engine, Path(path), manifest.files)
    state = engine.sharded_state(loading=True, optimizer=not model_only)
    wanted = wanted_contents(engine, state)
    if problems := mismatches(manifest.contents, wanted, allow, casts=model_only):
        raise CheckpointError("\n  ".join([f"{path} does not fit this model:", *problems]))
    lacking = {key for section, keys in wanted.items() for key in keys if key not in manifest.contents.get(section, ())}
    engine.load_state(read_state(engine, Path(path), state, lacking))
    return manifest


def load_backbones(path: Path, engine: Engine, components: Sequence[str], expected_fingerprint: Mapping[str, Any]) -> None:
    """Fill `vision`, `language` or both from a checkpoint of any architecture; everything else keeps its values. A collective.

    A language model comes without its gated cross-attention. path, expected_fingerprint: as for `load`; only the components' own
    facts (and the tokenizer, for `language`) must agree. Raises CheckpointError on every rank.
    """
    def own(facts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in facts.items()
                if name.partition(".")[0] in components or (name == "tokenizer" and "language" in components)}

    def chosen(keys: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in keys.items() if key.partition(".")[0] in components and not is_cross_attention(key)}

    def read_manifest() -> Manifest:
        manifest = Manifest.read(Path(path))
        if found := differences(own(manifest.fingerprint), own(expected_fingerprint)):
            raise CheckpointError("\n  ".join([f"{path} holds another {' and '.join(components)} component:", *found]))
        if problem := manifest.problem_with_files(Path(path)):
            raise CheckpointError(problem)
        return manifest

    manifest = on_main(engine, f"reading {path}", read_manifest, CheckpointError)
    verify_files(engine, Path(path), manifest.files)
    state = engine.sharded_state(loading=True, optimizer=False)
    wanted = wanted_contents(engine, state)["model"]
    if problems := mismatches({"model": chosen(manifest.contents["model"])}, {"model": chosen(wanted)}, (), casts=True):
        raise CheckpointError("\n  ".join([f"{path} does not fit this model's {' and '.join(components)} component:", *problems]))
    engine.load_state(read_state(engine, Path(path), state, set(wanted) - set(chosen(wanted))))


def _checked_manifest(path: Path, expected_fingerprint: Mapping[str, Any]) -> Manifest:
    manifest = Manifest.read(path)
    if found := differences(manifest.fingerprint, expected_fingerprint):
        way_out = f"Its backbones can be taken where their own sizes agree: model.vision.weights={path} model.language.weights={path}"
        raise CheckpointError("\n  ".join(["it is a checkpoint of another model:", *found, way_out]))
    if problem := manifest.problem_with_files(path):
        raise CheckpointError(problem)
    return manifest


def verify_files(engine: Engine, path: Path, files: Mapping[str, FileRecord]) -> None:
    """Hash every file of a folder, the files shared out over the ranks by size. A collective.

    Raises CheckpointError on every rank if one is missing or differs from its record."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    largest_first = sorted(files, key=lambda name: (-files[name].size, name))

    def verify() -> None:
        for name in largest_first[rank::ranks]:
            if problem := problem_with_file(path, name, files[name]):
                raise CheckpointError(problem)

    on_every_rank(engine, f"verifying {path}", verify, CheckpointError)
