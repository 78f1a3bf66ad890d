"""Templates of the pages that are written: texts escaped, a name that is missing is an error."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent    # page.css and the plots, which other pages share


def templates(*folders: Path) -> Environment:
    """Those of these folders, the first that has a name, and then of the report."""
    return Environment(loader=FileSystemLoader([*folders, HERE]), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
                       lstrip_blocks=True)
