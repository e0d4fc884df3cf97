"""MONAI bundles: writing them for a study, running one in this process, and what each run begins with."""

from mmfusion.bundle.begin import begin, report, require, root
from mmfusion.bundle.new import TEMPLATE, new_bundle, pack_model
from mmfusion.bundle.run import run_config

__all__ = ["TEMPLATE", "new_bundle", "pack_model", "run_config", "begin", "root", "require", "report"]
