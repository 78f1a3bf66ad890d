"""The verbs of the command line, in the order in which help lists them."""

from nvlm_train.verbs.base import Verb, rank
from nvlm_train.verbs.runs import VERBS as RUN_VERBS

__all__ = ["VERBS", "Verb", "rank"]

VERBS = {**RUN_VERBS}
