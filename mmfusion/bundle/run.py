"""Write a bundle from the template, and run one of its configurations inside this process."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from mmfusion.bundle.begin import own_error, refuse_unknown
from mmfusion.errors import CohortError

TEMPLATE = Path(__file__).parent / "template"
"""The bundle that ships with the package; the one in ``bundles/`` is its copy."""


def write_bundle(folder: str | Path) -> Path:
    """Write the template as a bundle of its own.

    Raises:
        CohortError: the folder is there and not empty.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise CohortError(f"{folder} is not empty; choose a new folder for the bundle")
    shutil.copytree(TEMPLATE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_config(name: str, bundle: str | Path = TEMPLATE, **overrides: Any) -> ConfigWorkflow:
    """Run a configuration as ``python -m monai.bundle run`` would, without starting a new program.

    Args:
        name: ``train``, ``evaluate`` or ``inference``.
        bundle: the bundle's folder.
        overrides: entries of the configuration, by name.

    Returns:
        The finished workflow.

    Raises:
        OptionError: an override that names nothing in the configuration.
        MmfusionError: what the run itself raised, without MONAI's wrapping.
    """
    path = Path(bundle) / "configs" / f"{name}.yaml"
    refuse_unknown(overrides, ConfigParser.load_config_files(str(path)))
    workflow_type = "train" if name == "train" else "inference"
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns that logging stays as it is
    workflow = ConfigWorkflow(str(path), logging_file=False, workflow_type=workflow_type, **overrides)
    try:
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    except RuntimeError as error:
        own = own_error(error)
        if own is None:
            raise
        raise own from None
    return workflow
