"""Run under torchrun by test_stored.py: initial weights of a model saved under the layout that the words give.

    stored_ranks.py FOLDER WORD …
"""

import sys
from dataclasses import asdict
from pathlib import Path

from nvlm_train.config.compose import compose
from nvlm_train.engine.checkpoint import CheckpointStore, SaveFacts
from nvlm_train.parallel import groups
from nvlm_train.training.stages import build_engine


def main(folder: Path, words: list[str]) -> None:
    [run] = compose(words)
    engine = build_engine(run)
    whole = engine.sharded_state
    engine.sharded_state = lambda loading: whole(loading, optimizer=False)
    CheckpointStore(folder, keep_last=1).save(engine, SaveFacts("sft", asdict(run), {}, cursor=0), 1)
    engine.close()
    groups.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
