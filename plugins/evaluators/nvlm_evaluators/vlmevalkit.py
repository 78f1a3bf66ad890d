"""VLMEvalKit's side: `Nvlm` is a model of it, and `python -m nvlm_evaluators.vlmevalkit --model nvlm --data …` its run.py with that model.

The toolkit has no plug-ins; where its own command is wanted, one line in vlmeval/config.py does the same:

    supported_VLM["nvlm"] = partial(nvlm_evaluators.vlmevalkit.Nvlm, base_url="http://127.0.0.1:8000/v1")
"""

import os
import sys
from functools import partial
from string import ascii_uppercase
from typing import Any, ClassVar

from vlmeval.vlm.base import BaseModel

from nvlm_evaluators.client import BASE_URL, Client, Settings, picture, text

NAME = "nvlm"
LONGEST = 1024      # tokens, as the toolkit's own entry for NVLM has it, which also decodes greedily
FAILED = "Failed to obtain answer via API."      # the toolkit's word: it counts these, and asks them again in the next run
URL, TOKENS = "NVLM_BASE_URL", "NVLM_MAX_NEW_TOKENS"


class Nvlm(BaseModel):
    """Greedy. Prompts are the toolkit's, as for its own NVLM; MMMU's is that of NVLM's public evaluation code.

    max_new_tokens: longest answer; the rest: client.Client. The key is that of $NVLM_API_KEY.
    """

    INSTALL_REQ = False
    INTERLEAVE = True       # every picture is sent, each where the message has it
    is_api = True           # --api-nproc questions at a time
    allowed_types: ClassVar = ["text", "image"]

    def __init__(self, base_url: str = BASE_URL, model: str | None = None, max_new_tokens: int = LONGEST, timeout_s: float = 600.0,
                 patience_s: float = 600.0, **_unused: Any):
        super().__init__()
        self._client, self._settings = Client(base_url, model, timeout_s, patience_s), Settings(max_new_tokens)

    def use_custom_prompt(self, dataset: str | None) -> bool:
        return bool(dataset) and dataset.startswith("MMMU") and not dataset.startswith("MMMU_Pro")

    def build_prompt(self, line: Any, dataset: str | None = None) -> list[dict]:
        """MMMU: pictures numbered in front, then the question with its options. line: a row of the toolkit's table."""
        paths = self.dump_image(line, dataset)
        paths = [paths] if isinstance(paths, str) else list(paths)
        shown = [part for number, path in enumerate(paths, 1)
                 for part in ({"type": "text", "value": f"{' ' * (number > 1)}<image {number}>"}, {"type": "image", "value": path})]
        options = [f"{letter}. {line[letter]}" for letter in ascii_uppercase if letter in line and line[letter] == line[letter]]    # not nan
        how = "Answer with the option's letter from the given choices directly." if options else "Answer the question directly."
        lines = "\n".join([str(line["question"]), *options, how])
        return [*shown, {"type": "text", "value": f"\n{lines}" if shown else lines}]

    def generate_inner(self, message: list[dict], dataset: str | None = None) -> str:
        """The answer. Where the server refuses the question what the toolkit counts as failed, with the reason. Raises ServerError."""
        parts = [picture(part["value"]) if part["type"] == "image" else text(part["value"]) for part in message]
        answer = self._client.answer([{"role": "user", "content": parts}], self._settings)
        return f"{FAILED} {answer.refused}" if answer.refused else answer.text.strip()


def main() -> None:
    """VLMEvalKit's command with the model `nvlm`: its address is $NVLM_BASE_URL, its longest answer $NVLM_MAX_NEW_TOKENS."""
    from vlmeval.config import supported_VLM
    from vlmeval.run import main as run

    supported_VLM[NAME] = partial(Nvlm, base_url=os.environ.get(URL, BASE_URL), max_new_tokens=int(os.environ.get(TOKENS, LONGEST)))
    run()


if __name__ == "__main__":
    sys.exit(main())
