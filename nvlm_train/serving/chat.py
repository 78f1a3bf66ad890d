"""`nvlm chat`: a conversation in the terminal, about pictures too. Standard output has the answers, standard error all else."""

import contextlib
import queue
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from nvlm_train.config.schema import Run
from nvlm_train.config.serving import Chat, Serve
from nvlm_train.data.images import MAX_PIXELS, image_size
from nvlm_train.errors import NvlmError, SampleRefused
from nvlm_train.evaluation.opening import Model
from nvlm_train.generation.generator import Generator
from nvlm_train.generation.request import LENGTH, News, Request, Sampling
from nvlm_train.generation.text_stream import TextStream, printable
from nvlm_train.serving.asked import Asked
from nvlm_train.serving.messages import Message
from nvlm_train.serving.opening import is_main, mirror, open_generator, refuse_copies
from nvlm_train.serving.problems import Refusal
from nvlm_train.serving.prompts import Prompt, prepare
from nvlm_train.serving.worker import Inbox, Refused, Share, Worker

HELP = """\
/image FILE    show a picture with the next question (several: one after another)
/system TEXT   set the system message; without a text, the model's own
/clear         forget the conversation and the pictures
/quit          end (so does Ctrl-D); Ctrl-C stops an answer"""


def chat_command(runs: Sequence[Run], checkpoint: str, chat: Chat) -> None:
    """Talk until the input ends. Every rank calls it. Raises ConfigError, CheckpointError, DataError; NvlmError: the model failed."""
    refuse_copies(runs)
    Sampling(chat.max_new_tokens, chat.temperature, chat.top_p, chat.seed)      # said before a model is loaded
    if is_main():
        with contextlib.closing(Asker(runs, checkpoint)) as asker:
            talk(asker, chat, Console(stderr=True, highlight=False))
    else:
        mirror(runs, checkpoint, slots=1)


class Asker:
    """The model in its own thread, asked one thing at a time."""

    def __init__(self, runs: Sequence[Run], checkpoint: str):
        """Waits until the model is there. Raises what its opening raises."""
        self._news: queue.SimpleQueue[News | Refused | Model | BaseException | None] = queue.SimpleQueue()
        self._inbox, self._count = Inbox(), 0

        def opened() -> tuple[Generator, Share]:
            model, generator, share = open_generator(runs, checkpoint, slots=1)
            self._news.put(model)
            return generator, share

        def deliver(told: Sequence[News | Refused]) -> None:
            for each in told:
                self._news.put(each)

        self._thread = Worker(self._inbox, opened, deliver, self._news.put)
        self._thread.start()
        self.model = self._next()

    def answer(self, prompt: Prompt, asked: Asked) -> Iterator[tuple[int | None, str | None]]:
        """(token, how the answer ended) one after the other. Left early, the answer is stopped. Raises NvlmError."""
        self._count += 1
        id = str(self._count)
        self._inbox.submit(Request(id, prompt.encoded, asked.sampling(prompt.max_new_tokens)))
        finish = None
        try:
            while finish is None:
                news = self._next()
                if news.id != id:       # of one that was stopped
                    continue
                if isinstance(news, Refused):
                    raise Refusal(news.problem)
                finish = news.finish
                yield news.token, finish
        finally:
            if finish is None:
                self._inbox.cancel(id)

    def close(self) -> None:
        """Stop all ranks' rounds, and wait for this one's last."""
        self._inbox.stop()
        self._thread.join(10.0)

    def _next(self):
        news = self._news.get()
        if isinstance(news, NvlmError):
            raise news
        if isinstance(news, BaseException):
            raise NvlmError(f"the model has failed: {type(news).__name__}: {news}") from news
        return news


@dataclass
class Conversation:
    """What was said so far, and the pictures that go with the next question."""

    system: str | None = None
    said: list[Message] = field(default_factory=list)
    pictures: list[bytes] = field(default_factory=list)

    def clear(self) -> None:
        self.said, self.pictures = [], []

    def prompt(self, question: str, prepared: Callable[[list[Message]], Prompt]) -> tuple[Prompt, Message, int]:
        """(what the model is given, the question, how many of the oldest turns it no longer has room for). Raises Refusal."""
        asked = Message("user", (*self.pictures, question))
        system = [] if self.system is None else [Message("system", (self.system,))]
        for dropped in range(0, len(self.said) + 1, 2):
            try:
                return prepared([*system, *self.said[dropped:], asked]), asked, dropped
            except Refusal as refusal:
                if refusal.code != "context_length_exceeded" or dropped == len(self.said):
                    raise
        raise AssertionError("the question alone is the last that is tried")

    def keep(self, asked: Message, answer: str, dropped: int) -> None:
        self.said = [*self.said[dropped:], asked, Message("assistant", (answer,))]
        self.pictures = []


def talk(asker: Asker, chat: Chat, console: Console) -> None:
    """Read lines until they end: questions, and commands that begin with a slash."""
    conversation = Conversation(chat.system)
    console.print(f"[bold]{asker.model.run.recipe}[/bold] from {asker.model.checkpoint}; /help lists the commands", soft_wrap=True)
    for line in _lines(console):
        word, _, rest = line.partition(" ")
        if word == "/quit":
            return
        try:
            if word.startswith("/"):
                _command(word, rest.strip(), conversation, asker, console)
            else:
                _ask(line, conversation, asker, chat, console)
        except (Refusal, SampleRefused, OSError) as problem:
            console.print(str(problem), style="red", markup=False, soft_wrap=True)


def _lines(console: Console) -> Iterator[str]:
    """What is typed, or comes from a pipe, without empty lines."""
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (gives `input` its editing and its history)
    while True:
        try:
            line = input("> " if typed else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print("\n(/quit ends)")
            continue
        if line:
            yield line


def _command(word: str, rest: str, conversation: Conversation, asker: Asker, console: Console) -> None:
    if word == "/image" and rest:
        if asker.model.blind:
            raise Refusal(asker.model.blind)
        data = Path(rest).expanduser().read_bytes()
        width, height = image_size(data)
        conversation.pictures.append(data)
        console.print(f"{rest}: {width}x{height} pixels, with the next question", markup=False, soft_wrap=True)
    elif word == "/system":
        conversation.system = rest or None
    elif word == "/clear":
        conversation.clear()
    elif word == "/help":
        console.print(HELP, markup=False)
    else:
        said = "needs a file" if word == "/image" else "no such command; /help lists them"
        console.print(f"{word}: {said}", markup=False)


def _ask(question: str, conversation: Conversation, asker: Asker, chat: Chat, console: Console) -> None:
    encoder, limits = asker.model.encoder, Serve(max_new_tokens=chat.max_new_tokens, max_pixels=MAX_PIXELS)

    def asked(messages: list[Message]) -> Asked:
        return Asked(messages, None, chat.temperature, chat.top_p, chat.seed, stops=(), stream=True, usage=False, tiles=False)

    prompt, message, dropped = conversation.prompt(question, lambda messages: prepare(asked(messages), encoder, limits, "chat"))
    if dropped:
        console.print(f"(the {dropped} oldest turns are forgotten: the model reads {encoder.max_tokens:,} tokens)", style="dim")
    text, written, finish = TextStream(encoder.tokenizer.decode), [], None
    try:
        with contextlib.closing(asker.answer(prompt, asked([]))) as tokens:
            for token, finish in tokens:
                if token is not None:
                    _show(text.push(token), written)
    except KeyboardInterrupt:
        console.print("\n(stopped)", style="dim", end="")
    _show(text.finish(), written)
    print(flush=True)
    if finish == LENGTH:
        console.print(f"(cut off after {prompt.max_new_tokens} tokens)", style="dim")
    conversation.keep(message, "".join(written), dropped)


def _show(piece: str, written: list[str]) -> None:
    written.append(piece)
    sys.stdout.write(printable(piece))
    sys.stdout.flush()
