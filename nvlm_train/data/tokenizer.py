"""A thin tokenizer: text to ids and back, and the few special ids the framework needs.

What users write is always text. A caption that contains `<|im_end|>` or `<image>` is spelled out in ordinary tokens; special
ids come only from `Tokenizer.special`, which the chat template calls.
"""

import hashlib
import json
from importlib import resources
from pathlib import Path

import tokenizers

from nvlm_train.data.templates import TEMPLATES, Template, template_in, template_of
from nvlm_train.errors import DataError

_PAD_NAMES = ("<|endoftext|>", "<pad>", "<|pad|>", "<unk>")
_CONTROL = {*_PAD_NAMES, *(token for template in TEMPLATES.values() for token in (*template.markers, *template.placeholders))}


class Tokenizer:
    """Attributes: vocab_size (highest id + 1: the embedding rows needed), template (of the chats it serves), eos_id (what ends an
    answer: `<|im_end|>` in ChatML), image_id, pad_id, fingerprint (SHA-256 of the tokenizer file, hex), file (a tokenizer.json that
    does the same in other libraries). Safe to use from several threads."""

    def __init__(self, file: bytes, name: str, template: Template | None = None):
        """`file`: contents of a tokenizer.json; `name` is for messages; `template`: that of `data.template`, None: the one whose
        tokens it has. Raises DataError when it cannot serve."""
        self.name = name
        self.fingerprint = hashlib.sha256(file).hexdigest()
        try:
            description = json.loads(file)
            changed = [token for token in description.get("added_tokens", ()) if token["content"] in _CONTROL and not token["special"]]
            for token in changed:
                token["special"] = True
            self.file = json.dumps(description, ensure_ascii=False).encode() if changed else file
            self._library = tokenizers.Tokenizer.from_str(self.file.decode())
        except Exception as error:   # the library raises bare Exception
            raise DataError(f"tokenizer {name} is not a Hugging Face tokenizer.json: {error}") from error
        self._library.no_padding()
        self._library.no_truncation()
        self._library.encode_special_tokens = True   # text that looks like a special token stays text
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.template = template or template_in(vocabulary)
        self.eos_id = self.special(self.template.end)
        self.image_id = self._first_of(self.template.placeholders, vocabulary, "image placeholder")
        self.pad_id = self._first_of((*_PAD_NAMES, self.template.end), vocabulary, "padding")
        self._check_injection()

    def _first_of(self, names: tuple[str, ...], vocabulary: dict[str, int], what: str) -> int:
        for name in names:
            if name in vocabulary:
                return vocabulary[name]
        raise DataError(f"tokenizer {self.name} has no {what} token: add one of {', '.join(names)} to its added_tokens")

    def _check_injection(self) -> None:
        """Refuse a tokenizer through which written text could reach an id that means structure."""
        for token in (*self.template.markers, self._library.id_to_token(self.image_id)):
            if self.special(token) in self.encode(token):
                raise DataError(f"tokenizer {self.name} turns the text {token!r} into the special token of that name: list it in "
                                "added_tokens, and not in the model's own vocabulary")

    def special(self, token: str) -> int:
        """Id of a special token by its exact name. Raises DataError if there is none."""
        found = self._library.token_to_id(token)
        if found is None:
            raise DataError(f"tokenizer {self.name} has no token {token}, which the chat template {self.template.name} needs: add it "
                            "to its added_tokens, or set data.template to the template of its model")
        return found

    def id_of(self, piece: str) -> int | None:
        """Id of a piece of text as the vocabulary spells it, or of a special token; None if there is none."""
        return self._library.token_to_id(piece)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; nothing is added before or after, and no id is a control token."""
        return self._library.encode(text, add_special_tokens=False).ids

    def decode(self, ids, skip_special: bool = True) -> str:
        """Text of a sequence of ids."""
        return self._library.decode([int(i) for i in ids], skip_special_tokens=skip_special)


def file_of(path: str | Path) -> Path:
    """The file that `model.tokenizer` names: itself, or the tokenizer.json of a folder. It need not be there."""
    named = Path(path).expanduser()
    return named / "tokenizer.json" if named.is_dir() else named


def load_tokenizer(name_or_path: str, template: str | None = None) -> Tokenizer:
    """"tiny" (shipped with the package), the path of a tokenizer.json, or a folder that holds one. Raises DataError.

    template: as `data.template` names it; None: the one whose special tokens the vocabulary has.
    """
    chosen = None if template is None else template_of(template)
    if name_or_path == "tiny":
        asset = resources.files("nvlm_train") / "assets" / "tiny_tokenizer.json"
        if not asset.is_file():
            raise DataError("the tokenizer `tiny` is missing from this installation (nvlm_train/assets/tiny_tokenizer.json): "
                            "install the package again, or set model.tokenizer to the path of a tokenizer.json")
        return Tokenizer(asset.read_bytes(), "tiny", chosen)
    path = file_of(name_or_path)
    if not path.is_file():
        raise DataError(f"no tokenizer at {path}: model.tokenizer is `tiny`, a tokenizer.json, or a folder that holds one")
    return Tokenizer(path.read_bytes(), str(path), chosen)
