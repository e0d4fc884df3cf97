"""MONAI bundles: writing them for a study, model cards, running one in this process, what each run begins with."""

from mmfusion.bundle.begin import begin, leave, open_run, report, require, root
from mmfusion.bundle.given import TEMPLATE, configuration
from mmfusion.bundle.model_card import write_model_card
from mmfusion.bundle.new import new_bundle, pack_model
from mmfusion.bundle.run import run_config

__all__ = [
    "TEMPLATE",
    "new_bundle",
    "pack_model",
    "write_model_card",
    "run_config",
    "begin",
    "open_run",
    "root",
    "configuration",
    "require",
    "report",
    "leave",
]
