"""MONAI bundles: writing them for a study, model cards, running one in this process, what each run begins with."""

from mmfusion.bundle.begin import begin, configuration, leave, report, require, root
from mmfusion.bundle.model_card import write_model_card
from mmfusion.bundle.new import TEMPLATE, new_bundle, pack_model
from mmfusion.bundle.run import run_config

__all__ = [
    "TEMPLATE",
    "new_bundle",
    "pack_model",
    "write_model_card",
    "run_config",
    "begin",
    "root",
    "configuration",
    "require",
    "report",
    "leave",
]
