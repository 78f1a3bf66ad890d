"""Chat templates: how a language model was taught to read turns. `chat` writes samples by them, `tokenizer` looks for their tokens.

ChatML (Qwen2, SmolLM2, Nous-Hermes-2-Yi; paper Figure 12) and Llama 3's. A template of another model is one more entry.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

from nvlm_train.errors import DataError


@dataclass(frozen=True)
class Text:
    """Plain text, tokenised by itself."""

    text: str
    learned: bool = False


@dataclass(frozen=True)
class Special:
    """One special token, by name."""

    token: str
    learned: bool = False


@dataclass(frozen=True)
class Picture:
    """The place of one picture's tiles and tags; `index` counts the sample's pictures."""

    index: int


Segment = Text | Special | Picture


@dataclass(frozen=True)
class Template:
    """How turns are written.

    begin:        before everything else of a sample
    open:         of a turn, before its text; {role} stands for system, user or assistant
    end:          special token behind a turn's text: learned with an assistant's, and what ends an answer
    after:        text behind `end`, learned with it
    placeholders: special tokens that may stand for a visual token, the first that a vocabulary has. Its embedding is never used,
                  so any token will do that no text is made of; the last ones are spare ones of vocabularies that are full
    """

    name: str
    begin: tuple[Special, ...]
    open: tuple[Text | Special, ...]
    end: str
    after: str
    placeholders: tuple[str, ...]

    @property
    def markers(self) -> tuple[str, ...]:
        """The special tokens that it writes, each once."""
        written = [segment.token for segment in (*self.begin, *self.open) if isinstance(segment, Special)]
        return tuple(dict.fromkeys([*written, self.end]))

    def opening(self, role: str) -> list[Segment]:
        """What stands before the text of a turn."""
        return [replace(part, text=part.text.format(role=role)) if isinstance(part, Text) else part for part in self.open]


# `<image>` is this package's own, `<|vision_pad|>` that of Qwen2.5 and of the released NVLM.
_PLACEHOLDERS = ("<image>", "<|vision_pad|>")

CHATML = Template(
    name="chatml",
    begin=(),
    open=(Special("<|im_start|>"), Text("{role}\n")),
    end="<|im_end|>",
    after="\n",
    placeholders=(*_PLACEHOLDERS, "<empty_output>", "<|startoftext|>"),     # SmolLM2; Yi
)

LLAMA3 = Template(
    name="llama3",
    begin=(Special("<|begin_of_text|>"),),
    open=(Special("<|start_header_id|>"), Text("{role}"), Special("<|end_header_id|>"), Text("\n\n")),
    end="<|eot_id|>",
    after="",
    placeholders=(*_PLACEHOLDERS, "<|reserved_special_token_0|>"),
)

TEMPLATES = {template.name: template for template in (CHATML, LLAMA3)}


def template_in(vocabulary: Collection[str]) -> Template:
    """The template whose markers a vocabulary has; ChatML where it has those of none."""
    return next((template for template in TEMPLATES.values() if all(marker in vocabulary for marker in template.markers)), CHATML)


def template_of(name: str) -> Template:
    """The template of a name as `data.template` gives it. Raises DataError for one that does not exist."""
    if name not in TEMPLATES:
        raise DataError(f"data.template is {name!r}; it is one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
