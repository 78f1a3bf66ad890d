"""Caches a stage's features and trains it with and without them, in one job on however many ranks there are.

    cached_ranks.py FOLDER override ...     the runs lie in FOLDER/cached and FOLDER/computed
"""

import sys

from nvlm_train.config.compose import compose
from nvlm_train.training.cache_features import cache_features_command
from nvlm_train.training.stages import train_all


def main() -> None:
    folder, *overrides = sys.argv[1:]
    cache_features_command(compose(overrides))
    for name, features in (("cached", "require"), ("computed", "off")):
        train_all(compose([*overrides, f"data.features={features}", f"run.dir={folder}/{name}"]))


if __name__ == "__main__":
    main()
