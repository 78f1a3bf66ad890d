"""What lmms-eval finds through the entry point `lmms_eval.models`. The model itself is imported when it is asked for."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest("nvlm", chat_class_path="nvlm_evaluators.lmms.Nvlm")
