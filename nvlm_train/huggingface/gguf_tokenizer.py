"""A tokenizer.json out of the vocabulary that a GGUF file carries.

The file names the way in which text is cut before merging ("tokenizer.ggml.pre"), it does not spell it: each name that is read here
is an entry of `CUTS`. Only byte-level BPE ("gpt2") is read; other kinds need the publisher's own tokenizer.json.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nvlm_train.errors import CheckpointError

CONTROL, USER_DEFINED = 3, 4    # kinds of tokens that stand for themselves, in "tokenizer.ggml.token_type"

CUTS = {
    # SmolLM and SmolLM2: every digit alone, then as GPT-2 (llama.cpp's LLAMA_VOCAB_PRE_TYPE_SMOLLM). `transformers` 5.23 reads
    # such a file without the first step: then several spaces before a digit become other tokens than in training.
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


def tokenizer_json(fields: Mapping[str, Any], where: str) -> bytes:
    """The contents of a tokenizer.json, of as many tokens as the file has.

    fields: `GgufFile.fields`. where: for messages. Raises CheckpointError.
    """
    model, cut = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if model != "gpt2" or cut not in CUTS:
        raise CheckpointError(
            f"{where}: its tokenizer is of kind {model!r} and cuts text as {cut!r}; a tokenizer.json can be made of kind 'gpt2' with "
            f"{', '.join(map(repr, CUTS))}. Import the model's Hugging Face folder instead, which brings its tokenizer.json")
    tokens, kinds = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.token_type")
    merges = fields.get("tokenizer.ggml.merges")
    if not (tokens and kinds and merges) or len(tokens) != len(kinds):
        counts = ", ".join(f"{len(part or ())} {name}" for part, name in ((tokens, "tokens"), (kinds, "kinds"), (merges, "merges")))
        raise CheckpointError(f"{where}: its vocabulary is not whole ({counts}): the file is damaged")
    try:
        library = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    except Exception as error:   # the library raises bare Exception
        raise CheckpointError(f"{where}: its vocabulary makes no byte-level BPE: {error}") from error
    library.pre_tokenizer = pre_tokenizers.Sequence(CUTS[cut]())
    library.decoder = decoders.ByteLevel()
    library.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL)
                        for token, kind in zip(tokens, kinds) if kind in (CONTROL, USER_DEFINED)])
    return library.to_str(pretty=True).encode()

