"""The verbs of the command line, in the order in which help lists them."""

from nvlm_train.verbs.base import Verb, rank
from nvlm_train.verbs.chat import VERBS as CHAT_VERBS
from nvlm_train.verbs.checkpoints import VERBS as CHECKPOINT_VERBS
from nvlm_train.verbs.doctor import VERBS as DOCTOR_VERBS
from nvlm_train.verbs.export import VERBS as EXPORT_VERBS
from nvlm_train.verbs.importing import VERBS as IMPORT_VERBS
from nvlm_train.verbs.plan import VERBS as PLAN_VERBS
from nvlm_train.verbs.runs import VERBS as RUN_VERBS
from nvlm_train.verbs.score import VERBS as SCORE_VERBS
from nvlm_train.verbs.serve import VERBS as SERVE_VERBS
from nvlm_train.verbs.submit import VERBS as SUBMIT_VERBS

__all__ = ["VERBS", "Verb", "rank"]

VERBS = {**RUN_VERBS, **SERVE_VERBS, **CHAT_VERBS, **SCORE_VERBS, **CHECKPOINT_VERBS, **DOCTOR_VERBS, **PLAN_VERBS, **SUBMIT_VERBS,
         **IMPORT_VERBS, **EXPORT_VERBS}
