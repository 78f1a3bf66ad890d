"""Names for the parts of a model in a trace: forward hooks that are there for as long as it is recorded, and not before or after.

A part lasts until the next one begins, or its layer or the model ends, so residual additions, which are no modules, belong to
the part before them. Hooks run wherever a module does: in every (virtual) pipeline stage, and when a layer is computed again
in the backward.
"""

from collections.abc import Sequence

import torch
from torch.nn import Module

from nvlm_train.model.cross_attention import ReadingLayer
from nvlm_train.model.nvlm import Nvlm
from nvlm_train.training.profile.parts import MARK


class Marks:
    """Puts ranges around the parts of the stages until `remove`. One thread runs modules at a time: this keeps one range open."""

    def __init__(self, stages: Sequence[Nvlm]) -> None:
        self._open: torch.profiler.record_function | None = None
        self._handles: list = []
        for stage in stages:
            self._mark(stage)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._leave()

    def _mark(self, stage: Nvlm) -> None:
        if stage.pre_process:
            for component in ("vision", "connector"):
                module = getattr(stage, component)
                self._begins(module, component)
                self._ends(module)
        block = stage.language.decoder
        for layer in block.layers:
            self._begins(layer.input_layernorm, "self_attention")
            if isinstance(layer, ReadingLayer):
                self._begins(layer.pre_cross_attn_layernorm, "cross_attention")
            self._begins(layer.pre_mlp_layernorm, "mlp")
            self._ends(layer)
        if stage.post_process:
            self._begins(block.final_layernorm, "output")
        self._ends(stage)

    def _begins(self, module: Module, component: str) -> None:
        self._handles.append(module.register_forward_pre_hook(lambda *_: self._enter(component)))

    def _ends(self, module: Module) -> None:
        self._handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))

    def _enter(self, component: str) -> None:
        self._leave()
        self._open = torch.profiler.record_function(MARK + component)
        self._open.__enter__()

    def _leave(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
