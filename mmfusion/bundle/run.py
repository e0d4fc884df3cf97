"""Run a configuration of a bundle inside this process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from mmfusion.bundle.begin import own_error
from mmfusion.bundle.given import CODE, TEMPLATE, called_with, refuse_unknown
from mmfusion.errors import OptionError


def run_config(name: str, bundle: str | Path = TEMPLATE, **overrides: Any) -> ConfigWorkflow:
    """Run a configuration as ``python -m monai.bundle run`` would, without starting a new program.

    Args:
        name: of the configuration: ``train``, ``evaluate``, ``inference``.
        bundle: the bundle's folder.
        overrides: entries of the configuration, by name.

    Returns:
        The finished workflow.

    Raises:
        OptionError: an override that names nothing in the configuration.
        MmfusionError: what the run itself raised, without MONAI's wrapping.
    """
    path = Path(bundle) / "configs" / f"{name}.yaml"
    if not path.is_file():
        raise OptionError(f"{bundle} has no configuration {path.name}; it has {_names(path.parent)}")
    given, overrides = overrides, {"bundle_root": str(bundle), **overrides}
    for option in ("bundle_root", "cohort", "manifest", "run_dir", "out"):
        if str(overrides.get(option) or "").startswith(CODE):  # which MONAI would take for more than a path
            overrides[option] = str(Path(overrides[option]).absolute())
    refuse_unknown(overrides, ConfigParser.load_config_files(str(path)))
    workflow_type = "train" if name == "train" else "inference"
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns that logging stays as it is
    workflow = ConfigWorkflow(str(path), logging_file=False, workflow_type=workflow_type, **overrides)
    with called_with([str(path)], given):
        try:
            workflow.initialize()
            workflow.run()
            workflow.finalize()
        except Exception as error:
            own = own_error(error)
            if own is None or own is error:
                raise
            raise own from None
    return workflow


def _names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.glob("*.yaml"))) or "none"
