"""MONAI Deploy application: a folder with the DICOM series of a study to class probabilities in a DICOM SR.

::

    python app.py -i DICOM_FOLDER -o OUT -m MODEL
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from operators import ClassifyStudyOperator, WriteReportOperator

from mmfusion.errors import MmfusionError, OptionError

RULES = Path(__file__).parent / "rules.json"


class FusionApp(Application):
    """Load, select, classify, report."""

    def compose(self) -> None:
        context = Application.init_app_context(self.argv)
        scans, model, out = (Path(path) for path in (context.input_path, context.model_path, context.output_path))
        rules = RULES.read_text()
        # once: without a count, the loader, which waits for nothing, would run forever
        load = DICOMDataLoaderOperator(self, CountCondition(self, 1), input_folder=scans, name="load")
        # all that match: the SDK's default takes the first of several series silently
        select = DICOMSeriesSelectorOperator(self, rules=rules, all_matched=True, name="select")
        classify = ClassifyStudyOperator(self, model_folder=model, name="classify")
        write = WriteReportOperator(self, model_folder=model, output_folder=out, name="write")
        known = {selection["name"] for selection in json.loads(rules)["selections"]}
        if unknown := [name for name in classify.model.case["modalities"] if name not in known]:
            raise OptionError(f"{RULES} has no selection named {', '.join(unknown)}, which the model can use; add it")
        self.add_flow(load, select, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(select, classify, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(classify, write, {("predictions", "predictions")})


if __name__ == "__main__":
    try:
        FusionApp().run()
    except MmfusionError as error:
        sys.exit(f"error: {error}")
