"""Runs programs that a model wrote, locked down. `run` is all that others need."""

from nvlm_train.evaluation.sandbox.parent import Limits, Outcome, kernel_walls, run

__all__ = ["Limits", "Outcome", "kernel_walls", "run"]
