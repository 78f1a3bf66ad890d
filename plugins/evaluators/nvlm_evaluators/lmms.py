"""lmms-eval's model `nvlm`: tasks' chat messages, with their pictures, to `nvlm serve`."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from nvlm_evaluators.client import BASE_URL, Answer, Client, Settings, picture, text

log = logging.getLogger(__name__)

LONGEST = 1024      # tokens of an answer where a task says nothing, as lmms-eval's own models have it
UNASKED = ["\n\n"]    # what lmms-eval puts in where a task names no stop; its own chat models pass over it, or reasoning would end at a paragraph
DEFAULTS = {"num_beams": 1, "n": 1, "use_cache": True, "return_dict_in_generate": False}     # settings of tasks that change nothing if so


class Nvlm(lmms):
    """--model_args base_url=…,at_once=…: base_url up to and with /v1; model if the server has several; at_once: questions at a time;
    max_new_tokens: in place of the tasks'; timeout_s, patience_s: client.Client. The key is that of $NVLM_API_KEY."""

    is_simple = False

    def __init__(self, base_url: str = BASE_URL, model: str | None = None, at_once: int = 16, max_new_tokens: int | None = None,
                 timeout_s: float = 600.0, patience_s: float = 600.0, batch_size: Any = None, max_batch_size: Any = None, device: Any = None):
        super().__init__()
        del batch_size, max_batch_size, device      # the harness hands them to every model; the server's are its own
        self._client = Client(base_url, model, float(timeout_s), float(patience_s))
        self._at_once, self._max_new_tokens = int(at_once), max_new_tokens

    def generate_until(self, requests: list) -> list[GenerationResult]:
        """Answers in the order of the requests. A question that the server refuses gets an empty answer, and the log says why.

        Raises ServerError; ValueError: a task wants what cannot be served.
        """
        asked = [self._asked(*request.args) for request in requests]
        with ThreadPoolExecutor(self._at_once) as pool:
            answers = list(tqdm(pool.map(self._answer, asked), total=len(asked), desc="asking"))
        refused = [answer.refused for answer in answers if answer.refused]
        if refused:
            log.error("%d of %d questions were refused and count as answered with nothing, the first because: %s", len(refused), len(answers),
                      refused[0])
        if refused and len(refused) == len(answers):
            raise ValueError(f"all {len(answers)} questions were refused, the first because: {refused[0]}")
        return [GenerationResult(answer.text, TokenCounts(answer.prompt_tokens, answer.new_tokens)) for answer in answers]

    def _asked(self, context: str, doc_to_messages: Any, wanted: dict, doc_id: Any, task: str, split: str) -> tuple:
        return doc_to_messages, self.task_dict[task][split], doc_id, settings_of(wanted, self._max_new_tokens)

    def _answer(self, asked: tuple) -> Answer:
        doc_to_messages, docs, doc_id, settings = asked     # pictures are read one question at a time
        return self._client.answer([_message(message) for message in doc_to_messages(docs[doc_id])], settings)

    def generate_until_multi_round(self, requests: list) -> NoReturn:
        raise NotImplementedError("nvlm: tasks of several rounds are not done; run them with lmms-eval's model `openai` on the same address")

    def loglikelihood(self, requests: list) -> NoReturn:
        raise NotImplementedError("nvlm: likelihoods of given answers are not served (the interface of chat completions has no place for "
                                  "them); choose the task's generative form")


def settings_of(wanted: dict, max_new_tokens: int | None = None) -> Settings:
    """A task's generation settings as the server takes them. Raises ValueError for those that would change the answer and are not served."""
    wanted = {name: value for name, value in wanted.items() if value is not None}
    until, sampled = wanted.pop("until", ()), wanted.pop("do_sample", True)
    stops = (until,) if isinstance(until, str) else tuple(until if until != UNASKED else ())
    temperature, top_p = float(wanted.pop("temperature", 0.0)), float(wanted.pop("top_p", 1.0))
    longest = [wanted.pop(name) for name in ("max_new_tokens", "max_gen_toks") if name in wanted]
    temperature = temperature if sampled else 0.0
    settings = Settings(int(max_new_tokens or (longest or [LONGEST])[0]), temperature, top_p if temperature else 1.0,
                        wanted.pop("seed", None), tuple(stop for stop in stops if stop))
    odd = {name: value for name, value in wanted.items() if DEFAULTS.get(name) != value and not _harmless(name, temperature)}
    if odd:
        raise ValueError(f"a task wants {odd}, which `nvlm serve` does not do; --gen_kwargs can say otherwise")
    return settings


def _harmless(name: str, temperature: float) -> bool:
    """Settings for pictures are the server's own; top_k says nothing where the likeliest token is taken."""
    return name.startswith(("image_", "max_pixels", "min_pixels")) or (name == "top_k" and not temperature)


def _message(message: dict) -> dict:
    content = message["content"]
    parts = [text(content)] if isinstance(content, str) else [_part(part) for part in content]
    return {"role": message["role"], "content": parts}


def _part(part: dict) -> dict:
    if part["type"] == "text":
        return text(part["text"])
    if part["type"] == "image":
        return picture(part["url"])     # lmms-eval's name for a PIL image, or a file
    raise ValueError(f"a task shows {part['type']}, and this model sees pictures and text alone")
