"""Caches a stage's features under one layout and trains it with and without them under each of several, in one job of two ranks.

    cached_ranks.py FOLDER LAYOUT[/LAYOUT...] override ...     the runs lie in FOLDER/cached-N and FOLDER/computed-N
"""

import sys

from nvlm_train.config.compose import compose
from nvlm_train.training.cache_features import cache_features_command
from nvlm_train.training.stages import train_all


def main() -> None:
    folder, layouts, *overrides = sys.argv[1:]
    for number, layout in enumerate(layouts.split("/")):
        if number == 0:
            cache_features_command(compose([*overrides, *layout.split()]))
        for name, features in (("cached", "require"), ("computed", "off")):
            train_all(compose([*overrides, *layout.split(), f"data.features={features}", f"run.dir={folder}/{name}-{number}"]))


if __name__ == "__main__":
    main()
