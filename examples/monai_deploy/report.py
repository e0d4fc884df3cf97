"""A prediction as a DICOM Structured Report: Comprehensive 3D SR by template TID 1500, the form that the IHE profile
AI Results asks for. It needs highdicom and knows nothing of MONAI Deploy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

import mmfusion

if TYPE_CHECKING:
    from mmfusion.predict import CasePrediction, Model

RESEARCH_USE_ONLY = "Research use only. Not a medical device; not for diagnosis or any decision about a patient."
NAME = "mmfusion classifier"
SCHEME = "99MMFUSION"  # a private coding scheme begins with 99 (PS3.16, chapter 8)
_PROCEDURES = {
    "CT": codes.cid100.CTUnspecifiedBodyRegion,
    "PT": codes.cid100.PETUnspecifiedBodyRegion,
    "MR": codes.cid100.MRIUnspecifiedBodyRegion,
    "NM": codes.cid100.NMUnspecifiedBodyRegion,
}
# types 1 and 2 of the modules Patient and General Study (PS3.3, C.7.1.1 and C.7.2.1): an SR without them is not valid,
# and one with other values would not be filed with the study. Nothing else of the source is copied.
_REQUIRED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
             "AccessionNumber", "ReferringPhysicianName")  # fmt: skip


def structured_report(
    prediction: CasePrediction, sources: Mapping[str, Sequence[Dataset]], *, model: Model, digest: str
) -> Comprehensive3DSR:
    """The report of one study.

    Args:
        prediction: of :func:`mmfusion.predict.predict_case`.
        sources: by modality of the model, all instances of the series that was read; those of one study.
        model: what predicted.
        digest: SHA-256 of the weights in hexadecimal; says which model it was.

    Returns:
        A new instance in a new series of the same study: complete, preliminary, not verified.
    """
    images = [image for series in sources.values() for image in series]
    evidence = [_reference(image) for image in images]
    device = generate_uid(entropy_srcs=[digest])  # the same for the same weights
    observer = DeviceObserverIdentifyingAttributes(
        uid=device, name=NAME, manufacturer_name="mmfusion", model_name="mmfusion"
    )
    parameters = [f"weights sha256 {digest}"]
    if model.threshold is not None:
        parameters.append(f"class {model.classes[-1]} from a probability of {model.threshold:.4g} on")
    classes = {name: CodedConcept(f"CLASS_{n}", SCHEME, name) for n, name in enumerate(prediction.probabilities)}
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=generate_uid(), identifier="classification of the study"),
        algorithm_id=AlgorithmIdentification(name=NAME, version=mmfusion.__version__, parameters=parameters),
        measurements=[
            Measurement(CodedConcept(f"P_{n}", SCHEME, f"Probability of {name}"), share, codes.UCUM.NoUnits)
            for n, (name, share) in enumerate(prediction.probabilities.items())
        ],
        qualitative_evaluations=[
            QualitativeEvaluation(CodedConcept("PREDICTED", SCHEME, "Predicted class"), classes[prediction.predicted])
        ],
        source_images=[SourceImageForMeasurementGroup(one.SOPClassUID, one.SOPInstanceUID) for one in evidence],
    )
    report = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(codes.DCM.Device, observer_identifying_attributes=observer)
        ),
        procedure_reported=_procedures(images),
        imaging_measurements=[group],
    )
    report[0].ContentSequence.append(_texts(prediction))
    return Comprehensive3DSR(
        evidence=evidence,
        content=report,
        series_instance_uid=generate_uid(),
        series_number=9900,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        series_description="Research use only: classification",
        manufacturer="mmfusion",
        manufacturer_model_name=NAME,
        software_versions=mmfusion.__version__,
        content_qualification="RESEARCH",
        is_complete=True,
        specific_character_set="ISO_IR 192",
    )


def _texts(prediction: CasePrediction) -> ContainerContentItem:
    """What is said in words; TID 1500 has a container for it, which highdicom does not make by itself."""
    doubts = "; ".join(prediction.reasons) if prediction.status != "done" else "none"
    texts = {
        "Intended use": RESEARCH_USE_ONLY,
        "Modalities used": ", ".join(prediction.modalities),
        "Doubts about the preparation": doubts,
    }
    container = ContainerContentItem(
        CodedConcept("C0034375", "UMLS", "Qualitative Evaluations"), relationship_type=RelationshipTypeValues.CONTAINS
    )
    container.ContentSequence = ContentSequence(
        TextContentItem(codes.DCM.Comment, f"{name}: {text}", RelationshipTypeValues.CONTAINS)
        for name, text in texts.items()
    )
    return container


def _procedures(images: Sequence[Dataset]) -> list[CodedConcept]:
    found = dict.fromkeys(image.Modality for image in images)
    return [_PROCEDURES.get(name, codes.SCT.DiagnosticImaging) for name in found]


def _reference(image: Dataset) -> Dataset:
    """What points to an instance, and what the report must share with its study; no more."""
    out = Dataset()
    for name in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(out, name, image[name].value)
    for name in _REQUIRED:
        value = image.get(name)
        setattr(out, name, None if value is None else str(value))  # a name keeps no character set of its own
    return out
