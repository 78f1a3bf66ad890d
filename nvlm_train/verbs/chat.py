"""The verb that talks to a model in the terminal."""

from nvlm_train.config.serving import take_chat
from nvlm_train.verbs.base import CHECKPOINT, Verb, leave_job, log_to_stderr, runs_of


def _chat(words: list[str], flags: set[str]) -> None:
    spoken, rest = take_chat(words)
    runs = runs_of(spoken.checkpoint, rest)
    log_to_stderr()
    from nvlm_train.serving.chat import chat_command
    chat_command(runs, spoken.checkpoint, spoken.chat)
    leave_job()


VERBS = {
    "chat": Verb(_chat, "talk to a checkpoint in the terminal, about pictures too",
                 f"{CHECKPOINT}\n\nchat.max_new_tokens=N chat.temperature=T chat.top_p=P chat.seed=N chat.system=\"…\"\n"
                 "Inside: /image FILE, /system TEXT, /clear, /help, /quit. Ctrl-C stops an answer. Lines may also come from a pipe."),
}
