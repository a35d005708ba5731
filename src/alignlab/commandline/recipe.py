"""What a recipe says that only holds for its own choices. Torch-free."""

from collections.abc import Sequence

import yaml

from alignlab.commandline.tree import Tree, conf_folder

_DEFAULT = "adamw"  # of conf/config.yaml


def borrowed_rate(overrides: Sequence[str]) -> str | None:
    """What to tell a user whose optimizer would take the learning rate that an experiment has for another one."""
    typed = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    file = Tree(conf_folder()).file("experiment", typed.get("experiment", ""))
    if file is None or "optim" not in typed or "optim.lr" in typed:
        return None
    recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    rate = (recipe.get("optim") or {}).get("lr")
    choices = [entry for entry in recipe.get("defaults", []) if isinstance(entry, dict)]
    own = next((entry["override /optim"] for entry in choices if "override /optim" in entry), _DEFAULT)
    if rate is None or own == typed["optim"]:
        return None
    return (
        f"experiment={typed['experiment']} has optim.lr={rate} for optim={own}; "
        f"with optim={typed['optim']} give optim.lr= too"
    )
