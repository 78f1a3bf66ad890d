"""What `nvlm import` does and says."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvlm_train.engine.folders import as_size
from nvlm_train.huggingface.import_plan import ImportPlan, plan_import
from nvlm_train.huggingface.import_source import open_source
from nvlm_train.huggingface.importing import remarks, write_import
from nvlm_train.huggingface.new_folder import refuse_existing


@dataclass(frozen=True)
class Import:
    """What is asked. source: as for `open_source`. to: a folder that does not exist yet; None: nothing is written. layers: how
    many of an encoder's are taken. repository, licence: where the source does not say."""

    source: str
    to: str | None = None
    layers: int | None = None
    repository: str | None = None
    licence: str | None = None


def import_command(asked: Import, as_json: bool) -> None:
    """Work out what is to be done, say it, and do it if a target was given. Results go to stdout, remarks to stderr.

    Raises ConfigError, CheckpointError, TrainingError (the disk)."""
    if asked.to is not None:
        refuse_existing(Path(asked.to).expanduser())
    plan = plan_import(open_source(asked.source), asked.layers, asked.repository, asked.licence)
    notes = list(remarks(plan))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if asked.to is not None:
        write_import(plan, Path(asked.to).expanduser())
    facts = _facts(plan, asked, notes)
    print(json.dumps(facts) if as_json else _sentence(plan, asked))


def _facts(plan: ImportPlan, asked: Import, notes: list[str]) -> dict[str, Any]:
    parts = {name: asdict(getattr(plan.sizes, name)) for name in plan.sizes.components}
    return {"from": asked.source, "to": asked.to, "architecture": plan.sizes.architecture, "components": parts,
            "parameters": plan.parameters, "tensors": len(plan.tensors), "bytes": plan.size, "repository": plan.repository,
            "licence": plan.licence, "notes": notes}


def _sentence(plan: ImportPlan, asked: Import) -> str:
    parts = " and ".join(plan.sizes.components).replace("_", "-")
    done = f"written to {asked.to}" if asked.to is not None else "would be written"
    return f"{parts}: {plan.parameters:,} parameters in {len(plan.tensors)} tensors, {as_size(plan.size)}, {done}"
