"""Packages, and one move: the recipes live at the top of the repository, and inside the package once installed."""

from pathlib import Path

from setuptools import find_packages, setup

RECIPES = Path("recipes")


def recipe_packages() -> dict[str, str]:
    """Package name -> folder for `recipes/` and its groups, so that their files land in `nvlm_train/recipes/`."""
    folders = [RECIPES, *sorted(path for path in RECIPES.iterdir() if path.is_dir() and path.name.isidentifier())]
    return {".".join(("nvlm_train", *folder.parts)): str(folder) for folder in folders}


setup(
    packages=[*find_packages(include=["nvlm_train", "nvlm_train.*", "data_prep", "data_prep.*"]), *recipe_packages()],
    package_dir=recipe_packages(),
    package_data={
        **{package: ["*.yaml"] for package in recipe_packages()},
        "nvlm_train": ["assets/*"],
        "nvlm_train.huggingface": ["assets/*.py"],
        "nvlm_train.launching": ["*.j2"],
        "nvlm_train.training.report": ["page.*"],
        "nvlm_train.training.profile": ["profile.*"],
        "nvlm_train.comparison": ["compare.*"],
        "nvlm_train.serving": ["page.*"],
        "data_prep": ["assets/*", "*.j2"],
        "data_prep.catalog": ["*.yaml"],
    },
)
