"""Our own wording of the instructions that converted datasets are given, several for each style; a sample's key chooses.

The styles are the paper's seven pretraining formats (Figure 11: captioning, grounded OCR, referring-expression grounding, OCR with
boxes, transcription, VQA, LaTeX) and what fine-tuning adds. The wording of the tiny and demo datasets is in `phrases.py`.
"""

import random

PROMPTS: dict[str, tuple[str, ...]] = {
    "captioning": (
        "Say in one sentence what this picture shows.",
        "Write a caption for this picture.",
        "Sum up the scene in a few words.",
        "What can be seen here? Answer with one sentence.",
        "Give this photo a short, factual caption.",
    ),
    "vqa": (
        "{question}\nAnswer with a word or a short phrase.",
        "{question}\nReply briefly.",
        "{question}\nKeep the answer to a few words.",
    ),
    "chart": (
        "{question}\nAnswer from the figure, with a word or a number.",
        "{question}\nRead the answer off the figure.",
        "{question}\nGive only the value or label that the figure shows.",
    ),
    "document": (
        "{question}\nAnswer in the words of the document.",
        "{question}\nTake the answer from the page.",
        "{question}\nQuote the answer from the document.",
    ),
    "open": ("{question}",),
    "transcription": (
        "Write out all the text on this page.",
        "Copy the text of this page word for word.",
        "Type up what is written here, in reading order.",
        "Convert this page to plain text.",
    ),
    "transcription_start": (
        "Write out the text of this page from its start, up to {characters} characters.",
        "Copy the beginning of this page, at most {characters} characters, word for word.",
        "Type up the first {characters} characters or so of what is written here.",
    ),
    "ocr_boxes": (
        "Find every piece of text in the picture, and give each with its box.",
        "List the words in the picture together with their places.",
        "Read all text here, from top to bottom, with coordinates.",
        "Write down each text that you see and where it stands.",
    ),
    "grounded_ocr": (
        "What is written at {region}?",
        "Read the text inside {region}.",
        "Which text stands in the area {region}?",
    ),
    "referring": (
        "Where is {phrase}?",
        "Give the box of {phrase}.",
        "Mark the place of {phrase} in the picture.",
    ),
    "region_caption": (
        "What is at {region}?",
        "Describe the part of the picture inside {region}.",
        "Say in a few words what the area {region} shows.",
    ),
    "latex": (
        "Write this formula in LaTeX.",
        "Give the LaTeX source of what is shown.",
        "Turn the mathematics in the picture into LaTeX.",
    ),
    "multiple_choice": (
        "{question}\n{choices}\nAnswer with the letter of the right choice.",
        "{question}\n{choices}\nGive only the letter of your choice.",
        "{question}\n{choices}\nWhich one is right? Reply with its letter.",
    ),
    "rendered": (
        "Solve the problem in the picture.",
        "The picture holds a question. Answer it.",
        "Read the task in the picture, and answer it.",
    ),
}
"""Style -> variants. Words in braces are filled in by the converter."""


def prompt(style: str, key: str, **words: object) -> str:
    """One of the style's variants, each as likely, the same for the same key. Raises KeyError for a style or word that is unknown."""
    variants = PROMPTS[style]
    return random.Random(f"prompt/{style}/{key}").choice(variants).format(**words)
