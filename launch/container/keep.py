"""The packages that an image brings, as constraints for pip; with --check FILE, whether they are still what they were.

A version such as 2.10.0a0+nv25.11 exists nowhere but in the image, so a constraint to it keeps pip from replacing the package.
"""

import sys
from importlib.metadata import distributions
from pathlib import Path

# Compiled against each other, by NVIDIA. The rest of the image pip may move to what the requirements ask for.
KEEP = ("torch", "torchvision", "transformer-engine", "transformer-engine-torch", "apex", "flash-attn", "triton", "numpy",
        "nvidia-modelopt")


def installed() -> dict[str, str]:
    names = {}
    for distribution in distributions():
        name = distribution.metadata["Name"].lower().replace("_", "-")
        if name in KEEP:
            names[name] = f"{name}=={distribution.version}"
    return names


def main(words: list[str]) -> int:
    found = installed()
    if "torch" not in found:
        print("no torch here: this is for an image that brings its own", file=sys.stderr)
        return 1
    if not words:
        print("\n".join(found.values()))
        return 0
    before = set(Path(words[1]).read_text(encoding="utf-8").split())
    if changed := before ^ set(found.values()):
        print(f"changed by the installation: {', '.join(sorted(changed))}", file=sys.stderr)
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
