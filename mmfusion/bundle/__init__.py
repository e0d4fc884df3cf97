"""MONAI bundles: the template they are written from, running one in this process, and what each run begins with."""

from mmfusion.bundle.begin import begin, report
from mmfusion.bundle.run import TEMPLATE, run_config, write_bundle

__all__ = ["TEMPLATE", "write_bundle", "run_config", "begin", "report"]
