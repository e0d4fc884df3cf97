"""Two operators for MONAI Deploy: a study of several series to one prediction, and the prediction to a DICOM SR."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai.deploy.core import Fragment, Operator, OperatorSpec
from report import structured_report

from mmfusion.cohort import Case
from mmfusion.errors import CohortError
from mmfusion.predict import load_model, predict_case

if TYPE_CHECKING:
    from monai.deploy.core.domain.dicom_series import DICOMSeries
    from monai.deploy.core.domain.dicom_series_selection import StudySelectedSeries


class ClassifyStudyOperator(Operator):
    """The selected series of each study to one image and its class probabilities.

    The files are read again, by mmfusion: so units, registration and sampling are those of the training, which
    the SDK's own conversion to a volume would not give.

    Input ``study_selected_series_list``: of ``DICOMSeriesSelectorOperator``, with ``all_matched=True`` and the model's
    modalities as names of the selections. A modality without a series is missing; one with two is refused.
    Output ``predictions``: a list of (prediction, {modality: instances}).

    Raises:
        CohortError: no study has a series to classify, or one has several for one modality, or in several folders.
        MmfusionError: what preparing a case raises.
    """

    def __init__(self, fragment: Fragment, *args: Any, model_folder: Path, **kwargs: Any) -> None:
        self.model, self.network = load_model(model_folder)
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("study_selected_series_list")
        spec.output("predictions")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        studies = op_input.receive("study_selected_series_list")
        if not studies:
            raise CohortError("no series fits the rules: nothing to classify. Check the input folder and rules.json")
        op_output.emit([self.classify(study) for study in studies], "predictions")

    def classify(self, study: StudySelectedSeries) -> tuple[Any, dict[str, list[Any]]]:
        """Prediction and source instances of one study."""
        selected = study.series_by_selection_name
        series = {
            name: only_series(name, [one.series for one in selected[name]])
            for name in self.model.case["modalities"]
            if selected.get(name)
        }
        case = Case("study", images={name: path_of(name, one) for name, one in series.items()})
        sources = {
            name: [instance.get_native_sop_instance() for instance in one.get_sop_instances()]
            for name, one in series.items()
        }
        return predict_case(case, self.model, self.network), sources


class WriteReportOperator(Operator):
    """Each prediction to a DICOM SR file, named by its SOP instance UID.

    Input ``predictions``: of :class:`ClassifyStudyOperator`.
    """

    def __init__(self, fragment: Fragment, *args: Any, model_folder: Path, output_folder: Path, **kwargs: Any) -> None:
        self.output_folder = Path(output_folder)
        self.model, _ = load_model(model_folder)
        self.digest = hashlib.sha256((Path(model_folder) / "model.pt").read_bytes()).hexdigest()
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("predictions")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        self.output_folder.mkdir(parents=True, exist_ok=True)
        for prediction, sources in op_input.receive("predictions"):
            report = structured_report(prediction, sources, model=self.model, digest=self.digest)
            report.save_as(self.output_folder / f"{report.SOPInstanceUID}.dcm", enforce_file_format=True)


def only_series(modality: str, series: Sequence[DICOMSeries]) -> DICOMSeries:
    """The one series of a modality; which of several is meant must be said, not guessed."""
    if len(series) > 1:
        raise CohortError(
            f"{modality}: {len(series)} series of the study fit the rule, one is expected. Narrow it in rules.json, "
            "by SeriesDescription for example"
        )
    return series[0]


def path_of(modality: str, series: DICOMSeries) -> str:
    """Folder and UID of a series, as a manifest names it."""
    folders = {Path(one.get_native_sop_instance().filename).parent for one in series.get_sop_instances()}
    if len(folders) > 1:
        raise CohortError(f"{modality}: the files of the series lie in {len(folders)} folders; put them into one")
    return f"{folders.pop()}#{series.SeriesInstanceUID}"
