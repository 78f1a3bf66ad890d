"""Shows the catalog to people: a table in a terminal, one entry whole, and docs/datasets.md."""

from collections.abc import Iterable, Mapping

from rich.table import Table

from data_prep.catalog.entries import TASKS, Entry, counts, in_group

STAGES = {"pretrain": "Pretraining (Table 4)", "sft": "Finetuning with pictures (Table 6)", "text": "Finetuning, text only (section 5.3)"}

HEAD = """\
# Datasets

Every dataset of the NVLM paper: {pretrain} in pretraining, {sft} in finetuning, {text} of text alone. {entries} in all, since some serve
several stages. This page is written by `python -m data_prep catalog --markdown` from the files in `data_prep/catalog/`; how to add
one is said in [adding_a_dataset.md](adding_a_dataset.md).

Nothing is downloaded for you. Get a dataset from its home, or from the copy that is named, and convert it:

```sh
python -m data_prep convert chartqa $NVLM_DATA/raw/chartqa $NVLM_DATA/shards/chartqa
```

- **Name**: in `convert`, in recipes (`data.blend.NAME`, `blend=nvlm_paper`) and in samples' keys.
- **Size**: pictures to train on, or rows where there are no pictures; rounded; empty where we do not know it for certain.
- **Licence**: as published by the dataset's authors, as far as we know. `unknown`, and the pictures themselves, are for you to check.
- **Reads**: the converter, and the public copy whose files it reads, where these are not the files of the dataset's home. "Your own
  files": the public ones need work first (see the note), or we do not know their layout: give the converter's options yourself.
- **Check against**: benchmarks that took questions or pictures from the dataset; see `decontaminate`.

The train splits of {benchmarks} are in the paper's finetuning blend, so its scores on these are not zero-shot.
"""


def size_text(size: int | None) -> str:
    """`1.3 M`, `22 K`, `300`; nothing for None."""
    for unit, name in ((1_000_000, " M"), (1000, " K")):
        if size and size >= unit:
            return f"{size / unit:.3g}{name}"
    return str(size or "")


def table(entries: Iterable[Entry]) -> Table:
    """Name, title, stages with task groups, size, licence and converter of each."""
    shown = Table(box=None, header_style="bold")
    for column in ("name", "title", "task", "size", "licence", "converter"):
        shown.add_column(column, overflow="fold")
    for found in entries:
        tasks = ", ".join(f"{stage} {found.task[stage]}" for stage in found.stages)
        shown.add_row(found.name, found.title, tasks, size_text(found.size), found.licence, found.convert["family"])
    return shown


def whole(found: Entry) -> list[str]:
    """An entry, a line a field, those that are empty left out."""
    lines = [f"{found.name}: {found.title}"]
    lines += [f"  task: {stage}, {TASKS[stage][found.task[stage]]}" for stage in found.stages]
    given = {"style": found.style, "source": found.source, "copy": found.copy, "licence": found.licence, "size": size_text(found.size),
             "benchmark": found.benchmark, "check against": ", ".join(found.held_out), "note": found.note}
    lines += [f"  {name}: {value}" for name, value in given.items() if value]
    return lines + ["  convert:", *(f"    {name}: {value}" for name, value in found.convert.items())]


def markdown(catalog: Mapping[str, Entry]) -> str:
    """docs/datasets.md."""
    catalog = {name: found for name, found in catalog.items() if found.paper}
    benchmarks = sorted(found.benchmark for found in catalog.values() if found.benchmark)
    lines = [HEAD.format(**counts(catalog), entries=len(catalog), benchmarks=", ".join(benchmarks[:-1]) + " and " + benchmarks[-1])]
    for stage, groups in TASKS.items():
        lines += [f"## {STAGES[stage]}: {counts(catalog)[stage]}", ""]
        for group, title in groups.items():
            chosen = in_group(catalog, stage, group)
            lines += [f"### {title} ({len(chosen)})", "", "| name | dataset | size | licence | style | reads | check against | note |",
                      "|---|---|---|---|---|---|---|---|", *(_row(found) for found in chosen), ""]
    return "\n".join(lines)


def _row(found: Entry) -> str:
    title = f"[{found.title}]({_link(found.source)})" if found.source else found.title
    reads = f"`{found.convert['family']}`"
    if len(found.convert) == 1:
        reads += ", your own files"
    elif found.copy:
        reads += f", [copy]({_link(found.copy)})"
    note = f"Train split of a benchmark. {found.note}".strip() if found.benchmark else found.note
    cells = (f"`{found.name}`", title, size_text(found.size), found.licence, found.style, reads,
             ", ".join(found.held_out), note)
    return "| " + " | ".join(cells) + " |"


def _link(address: str) -> str:
    return address.replace("(", "%28").replace(")", "%29")
