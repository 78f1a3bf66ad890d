"""The verbs of the command line, in the order in which help lists them."""

from nvlm_train.verbs.base import Verb, rank
from nvlm_train.verbs.export import VERBS as EXPORT_VERBS
from nvlm_train.verbs.importing import VERBS as IMPORT_VERBS
from nvlm_train.verbs.plan import VERBS as PLAN_VERBS
from nvlm_train.verbs.runs import VERBS as RUN_VERBS

__all__ = ["VERBS", "Verb", "rank"]

VERBS = {**RUN_VERBS, **PLAN_VERBS, **IMPORT_VERBS, **EXPORT_VERBS}
