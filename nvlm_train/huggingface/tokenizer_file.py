"""The tokenizer.json of an imported model: checked against the rows of its embedding, and given a token for a picture's place.

That token is only ever replaced by visual tokens, so it needs an id but no meaning. It must lie within the embedding's rows,
which are left as they were published.
"""

import json
from dataclasses import dataclass
from typing import Any

import tokenizers

from nvlm_train.data.templates import template_in
from nvlm_train.errors import CheckpointError

PLACEHOLDER = "<|vision_pad|>"
# What later Qwen releases put behind Qwen2's last token, <|im_end|>: in their order the placeholder is 151654, as it is there.
QWEN2_END = 151645
LATER_QWEN = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
              "<|vision_start|>", "<|vision_end|>", PLACEHOLDER)


@dataclass(frozen=True)
class TokenizerFile:
    """contents: of a tokenizer.json. note: what was done to it or is still to be done, a sentence; None if nothing."""

    contents: bytes
    note: str | None = None


def prepare_tokenizer(contents: bytes, rows: int, where: str) -> TokenizerFile:
    """A tokenizer.json with a placeholder token if there is room for one. rows: of the embedding.

    Raises CheckpointError: it is no tokenizer.json, or has more ids than there are rows.
    """
    description, vocabulary = _read(contents, where)
    highest = max(vocabulary.values(), default=-1)
    if highest >= rows:
        raise CheckpointError(f"{where}: tokenizer.json has ids up to {highest:,}, and the embedding {rows:,} rows: it is the "
                              "tokenizer of another model")
    template = template_in(vocabulary)
    if any(name in vocabulary for name in template.placeholders):
        return TokenizerFile(contents)
    later = LATER_QWEN if highest == vocabulary.get("<|im_end|>") == QWEN2_END else (PLACEHOLDER,)
    if highest + len(later) >= rows:
        return TokenizerFile(
            contents, f"the tokenizer has no token for a picture's place ({', '.join(template.placeholders)}), and its "
                      f"{highest + 1:,} ids leave no room for one in {rows:,} rows: to train on pictures, rename a token of its "
                      "that no text is made of")
    description.setdefault("added_tokens", []).extend(
        {"id": highest + 1 + n, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True} for n, name in enumerate(later))
    made = json.dumps(description, ensure_ascii=False, indent=1).encode()
    _, found = _read(made, where)
    place = highest + len(later)
    if found.get(PLACEHOLDER) != place:
        raise CheckpointError(f"{where}: {PLACEHOLDER} was to become token {place:,} of tokenizer.json and became "
                              f"{found.get(PLACEHOLDER)}")
    return TokenizerFile(made, f"the tokenizer had no token for a picture's place; {PLACEHOLDER} was added as {place:,}")


def _read(contents: bytes, where: str) -> tuple[dict[str, Any], dict[str, int]]:
    """(the file's table, its vocabulary with special tokens)."""
    try:
        description = json.loads(contents)
        return description, tokenizers.Tokenizer.from_str(json.dumps(description)).get_vocab(with_added_tokens=True)
    except Exception as problem:    # the library raises bare Exception
        raise CheckpointError(f"{where}: tokenizer.json cannot be read: {problem}") from problem
