"""Talking to a model: an OpenAI-compatible server with a web page (`nvlm serve`), and a chat in the terminal (`nvlm chat`).

    body --asked--> Asked --prompts--> Prompt --worker--> tokens --text_stream--> text --answers--> JSON, or server-sent events

One thread owns the engine (`worker`); the others read requests, decode pictures and write answers. Only `command`,
`app` and `completions` know of HTTP.
"""
