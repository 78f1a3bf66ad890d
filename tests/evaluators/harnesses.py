"""The modules of lmms-eval and VLMEvalKit that the plug-ins import: those of the packages (`NVLM_REFERENCES`, see
tests/evaluation/references.py), or stand-ins of the same shape.

The packages are not imported whole: they bring a hundred others. The files with the base classes are, as they are, around small
stand-ins for what those files import.
"""

import mimetypes
import os
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

from tests.evaluation.references import reference_file, taken

SETS = ("stand-in", "package")


def lmms_eval(kind: str, monkeypatch) -> None:
    """`lmms_eval.api.model`, `lmms_eval.api.instance` and `lmms_eval.models.registry_v2` can be imported."""
    if kind == "package":
        where = reference_file("lmms_eval/api/model.py").parents[1]
        parse = taken("lmms_eval/utils.py", "handle_arg_string", "_smart_comma_split", "simple_parse_args_string")["simple_parse_args_string"]
        _put(monkeypatch, lmms_eval=_package(where, utils=SimpleNamespace(simple_parse_args_string=parse)))
        _put(monkeypatch, **{f"lmms_eval.{name}": _package(where / name) for name in ("api", "models")})
        return

    class Base:
        is_simple = True

        def __init__(self):
            self.task_dict = {}

        @classmethod
        def create_from_arg_string(cls, words, more):
            return cls(**dict(word.split("=", 1) for word in words.split(",")), **{key: value for key, value in more.items() if value})

    @dataclass
    class Counts:
        input_tokens: int | None = None
        output_tokens: int | None = None

    @dataclass
    class Result:
        text: str
        token_counts: Counts | None = None

    @dataclass
    class Manifest:
        model_id: str
        simple_class_path: str | None = None
        chat_class_path: str | None = None

    _put(monkeypatch, lmms_eval=_module(), **{
        "lmms_eval.api": _module(), "lmms_eval.models": _module(), "lmms_eval.api.model": _module(lmms=Base),
        "lmms_eval.api.instance": _module(GenerationResult=Result, TokenCounts=Counts),
        "lmms_eval.models.registry_v2": _module(ModelManifest=Manifest)})


def vlmeval(kind: str, monkeypatch) -> None:
    """`vlmeval.vlm.base` can be imported."""
    if kind == "package":
        where = reference_file("vlmeval/vlm/base.py").parents[1]
        parse = taken("vlmeval/smp/file.py", "parse_file", os=os, osp=os.path, mimetypes=mimetypes, decode_base64_to_image_file=None,
                      LMUDataRoot=lambda: "", md5=str, download_file=None, validators=SimpleNamespace(url=lambda text: False))["parse_file"]
        unused = {"concat_images_vlmeval": None, "encode_image_to_base64": None, "listinstr": None}
        _put(monkeypatch, vlmeval=_package(where), **{
            "vlmeval.vlm": _package(where / "vlm"), "vlmeval.dataset": _module(DATASET_TYPE=None),
            "vlmeval.smp": _module(parse_file=parse, **unused)})
        return

    class Base:
        def set_dump_image(self, dump):
            self.dump = dump

        def dump_image(self, line, dataset):
            return self.dump(line)

        def generate(self, message, dataset=None):
            return self.generate_inner(message, dataset)

    _put(monkeypatch, vlmeval=_module(), **{"vlmeval.vlm": _module(), "vlmeval.vlm.base": _module(BaseModel=Base)})


def _put(monkeypatch, **modules: ModuleType) -> None:
    for name, module in modules.items():
        module.__name__ = name
        monkeypatch.setitem(sys.modules, name, module)


def _module(**names: object) -> ModuleType:
    module = ModuleType("")
    vars(module).update(names)
    return module


def _package(folder, **names: object) -> ModuleType:
    module = _module(**names)
    module.__path__ = [str(folder)]
    return module
