"""mmfusion: from PET, CT and MR as the scanner wrote them to a diagnosis probability with its evidence.

A study becomes cases, a case becomes one tensor, a tensor becomes a probability with its evidence.
Every step is a room of its own and also works alone; CONTRIBUTING.md has the map. The main path is::

    import mmfusion

    run = mmfusion.train("cohort", "runs/a", strategy="decision")   # a mmfusion.Run
    run.evaluate()
    run.predict("new.csv", "predictions")

Importing this package is cheap: rooms are imported by their own names (``from mmfusion.io import load_volume``), and
the functions above when they are first named.

Research use only: nothing here is a medical device.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MAIN_PATH = ("train", "evaluate", "Run")


def __getattr__(name: str) -> Any:
    """The functions of the main path, imported now."""
    if name in _MAIN_PATH:
        return getattr(import_module("mmfusion.training"), name)  # by its name: no room depends on it for being here
    raise AttributeError(f"module 'mmfusion' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *_MAIN_PATH]
