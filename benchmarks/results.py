"""What every benchmark does with its result: one line of JSON on the console, and a file if asked for."""

import json
from collections.abc import Mapping


def tell(result: Mapping, path: str | None) -> None:
    """Print the result as one line; `path`: also write it there."""
    print(json.dumps(result))
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
