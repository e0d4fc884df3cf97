"""Which column a series becomes and which of several is chosen: by tags, by words, and by what can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from io_dicom import pet_tags, voxels, write_enhanced, write_series
from pydicom.uid import generate_uid

from mmfusion.cohort import build_index, check_manifest, read_manifest
from mmfusion.io import load_volume

AGENT = {"ContrastBolusAgent": "GADOVIST 7.5 ML"}


def add(folder: Path, words: str = "", frames: int = 1, **tags) -> None:
    """A series of one subject, of ``frames`` at the same places that InstanceNumber tells apart."""
    uid, stored = generate_uid(), voxels((7, 5, 6))
    base = {"Modality": "MR", "PatientID": "A", "SeriesDescription": words, "SeriesNumber": None}
    for frame in range(frames):

        def number(dataset, n, frame=frame):
            dataset.InstanceNumber = 6 * frame + n + 1

        write_series(folder / "new", stored + frame, series_uid=uid, **({"edit": number} | base | tags))
        for path in (folder / "new").iterdir():
            path.rename(folder / f"{frame}_{path.name}")
        (folder / "new").rmdir()


def indexed(root: Path, **options) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Column to path below the root, path to the reason why it is not used, and the notes."""
    index = build_index(root, **options)
    (case,) = index.cases
    columns = {name: str(path.relative_to(root)) for name, path in case.images.items()}
    return columns, {str(one.path.relative_to(root)): one.reason for one in index.others}, index.notes


@pytest.mark.parametrize("words", ["AC aus", "PET ohne SK", "WB uncorr", "WB"])
def test_attenuation_correction_is_told_by_the_tag(tmp_path: Path, words: str) -> None:
    add(tmp_path / "raw", words, **(pet_tags() | {"CorrectedImage": ["DECY"], "SeriesNumber": 1}))
    add(tmp_path / "good", "WB NAC" if words == "WB" else "WB", **pet_tags())
    columns, reasons, _ = indexed(tmp_path)
    assert columns == {"pet": "good"} and reasons == {"raw": "not corrected for attenuation"}
    load_volume(tmp_path / "good", modality="pet")


@pytest.mark.parametrize(
    ("words", "used"),
    [("WB NAC", False), ("AC OFF", False), ("uncorr", False), ("ohne SK", False), ("WB AC", True), ("nacl", True)],
)
def test_attenuation_correction_is_told_by_words_without_the_tag(tmp_path: Path, words: str, used: bool) -> None:
    add(tmp_path / "ct", Modality="CT")
    add(tmp_path / "pet", words, **(pet_tags() | {"CorrectedImage": None, "Units": "GML"}))
    assert ("pet" in indexed(tmp_path)[0]) == used


@pytest.mark.parametrize(
    ("words", "by_words", "by_tag"),
    [
        ("T1 tra", "t1", "t1gd"), ("T1 C SPINE", "t1", "t1gd"), ("T1 posterior", "t1", "t1gd"),
        ("T1 post-op", "t1", "t1gd"), ("t1_tse_KM", "t1gd", "t1gd"), ("MPRAGE +GAD", "t1gd", "t1gd"),
        ("3D_T1_C+", "t1gd", "t1gd"), ("T1 injecté", "t1gd", "t1gd"), ("T1 avec gado", "t1gd", "t1gd"),
        ("T1 postGd", "t1gd", "t1gd"), ("T1 sans FS gado", "t1gd", "t1gd"), ("T1 nativ", "t1", "t1"),
        ("T1 pre", "t1", "t1"), ("T1 ohne KM", "t1", "t1"), ("T1 sans injection", "t1", "t1"),
        ("T1 non-contrast", "t1", "t1"), ("FLAIR KM", "flair", "flair"), ("T1 map", "t1map", "t1map"),
        ("T2* mapping", "t2starmap", "t2starmap"), ("ep2d_diff_ADC", "adc", "adc"), ("b1000", "dwi", "dwi"),
    ],
)  # fmt: skip
def test_mr_by_contrast_agent_and_words(tmp_path: Path, words: str, by_words: str, by_tag: str) -> None:
    add(tmp_path / "s" / "plain", "T2 TSE")
    add(tmp_path / "s" / "this", words)
    assert indexed(tmp_path / "s")[0] == {"mr_t2": "plain", f"mr_{by_words}": "this"}
    add(tmp_path / "t" / "plain", "T2 TSE", ContrastBolusAgent="no contrast")
    add(tmp_path / "u" / "plain", "T2 TSE")
    add(tmp_path / "u" / "this", words, ContrastBolusAgent="None")
    assert indexed(tmp_path / "u")[0] == {"mr_t2": "plain", f"mr_{by_words}": "this"}
    add(tmp_path / "t" / "this", words, **AGENT)
    (tmp_path / "key").write_text("k" * 32)
    for options in ({}, {"pseudonymize": tmp_path / "key"}):
        assert indexed(tmp_path / "t", **options)[0] == {"mr_t2": "plain", f"mr_{by_tag}": "this"}


def test_an_agent_in_every_header_of_a_study_leaves_it_to_words(tmp_path: Path) -> None:
    for words in ("T1 tra", "T1 tra KM", "T2"):
        add(tmp_path / words, words, **AGENT)
    assert indexed(tmp_path)[0] == {"mr_t1": "T1 tra", "mr_t1gd": "T1 tra KM", "mr_t2": "T2"}
    add(tmp_path / "other", "localizer", ImageType=["ORIGINAL", "PRIMARY", "M"])
    assert "mr_t1" not in indexed(tmp_path)[0]


@pytest.mark.parametrize(
    ("image_type", "words", "column"),
    [
        (["DERIVED", "PRIMARY", "DIFFUSION", "ADC"], "ep2d_diff_trace", "mr_adc"),
        (["DERIVED", "PRIMARY", "DIFFUSION", "TRACEW"], "ADC and b1000", "mr_dwi"),
        (["DERIVED", "PRIMARY", "DIFFUSION", "FA"], "diff", "mr_fa"),
        (["DERIVED", "PRIMARY", "DIFFUSION", "NONE"], "apparent diffusion ADC", "mr_adc"),
        (["DERIVED", "PRIMARY", "T1 MAP"], "T1 tra", "mr_t1map"),
        (["DERIVED", "PRIMARY", "R2_STAR"], "T2 tra", "mr_r2starmap"),
        (["ORIGINAL", "PRIMARY", "P", "ND"], "T1 tra", "mr_phase"),
        (["DERIVED", "PRIMARY", "DIXON", "WATER"], "T1 tra", "mr_water"),
    ],
)
def test_image_type_is_believed_before_words(tmp_path: Path, image_type: list[str], words: str, column: str) -> None:
    add(tmp_path / "this", words, ImageType=image_type)
    assert indexed(tmp_path)[0] == {column: "this"}


def together(folder: Path) -> None:
    """Move the files of the folders in a folder up into it."""
    for path in [*folder.glob("*/*")]:
        path.rename(folder / f"{path.parent.name}_{path.name}")
    for path in [*folder.iterdir()]:
        if path.is_dir():
            path.rmdir()


def test_kinds_of_image_in_one_series_are_columns(tmp_path: Path) -> None:
    """Alone in their folder and beside another series; the manifest loads, and check finds nothing twice."""
    uid, stored = generate_uid(), {"W": voxels(seed=1), "F": voxels(seed=2), "OP": voxels(seed=3)}
    for kind, values in stored.items():
        tags = {"Modality": "MR", "PatientID": "A", "series_uid": uid, "ImageType": ["ORIGINAL", "PRIMARY", kind]}
        write_series(tmp_path / "s" / kind, values, **tags)
    together(tmp_path / "s")
    assert indexed(tmp_path)[0] == {"mr_water": "s#water", "mr_fat": "s#fat", "mr_opposed": "s#opposed"}
    add(tmp_path / "s" / "t1", "T1")
    together(tmp_path / "s")
    index = build_index(tmp_path)
    index.write(tmp_path / "m.csv")
    (case,) = read_manifest(tmp_path / "m.csv")
    assert sorted(case.images) == ["mr", "mr_fat", "mr_opposed", "mr_water"] and not index.others
    assert case.images["mr_fat"] == tmp_path / f"s#{uid}:fat"
    np.testing.assert_array_equal(load_volume(case.images["mr_fat"]).array, stored["F"][::-1, ::-1])
    assert {one.level for one in check_manifest(tmp_path / "m.csv")} <= {"note"}


def test_water_of_two_subjects_is_no_copy_and_its_copy_is(tmp_path: Path) -> None:
    for seed, subject in enumerate("ABC"):
        for kind in "WF":
            tags = {"Modality": "MR", "PatientID": subject, "series_uid": f"1.2.{seed}"}
            values = voxels(seed=min(seed, 1))
            write_series(tmp_path / subject / kind, values, **tags, ImageType=["ORIGINAL", "PRIMARY", kind])
        together(tmp_path / subject)
    build_index(tmp_path).write(tmp_path / "m.csv")
    found = [(one.subject, one.modality, one.problem) for one in check_manifest(tmp_path / "m.csv")]
    same = [(subject, name) for subject, name, problem in found if "same content" in problem]
    assert same == [("C", "mr_fat"), ("C", "mr_water")]


def test_magnitude_beside_phase_is_the_sequence_itself(tmp_path: Path) -> None:
    for kind in "MP":
        tags = {"Modality": "MR", "PatientID": "A", "series_uid": "1.2.9"}
        write_series(tmp_path / "s" / kind, voxels(), **tags, ImageType=["ORIGINAL", "PRIMARY", kind, "ND"])
    together(tmp_path / "s")
    assert indexed(tmp_path)[0] == {"mr": "s#magnitude", "mr_phase": "s#phase"}
    add(tmp_path / "t2", "T2")
    assert indexed(tmp_path)[0] == {"mr_made": "s#magnitude", "mr_phase": "s#phase", "mr_t2": "t2"}


def test_one_frame_is_better_than_several(tmp_path: Path) -> None:
    add(tmp_path / "dynamic", "T1 dyn", frames=3)
    columns, _, notes = indexed(tmp_path)
    assert columns == {"mr": "dynamic"}
    assert notes == ["mr has several frames in 1 row; check and prepare need --frame"]
    add(tmp_path / "static", "T1 derived", ImageType=["DERIVED", "PRIMARY", "M"])
    columns, reasons, notes = indexed(tmp_path)
    assert columns == {"mr": "static"} and not notes
    assert reasons == {"dynamic": "mr is 'T1 derived', which has one frame"}


def test_what_cannot_be_read_gives_way_to_the_next_best(tmp_path: Path) -> None:
    def gap(dataset, n):
        dataset.ImagePositionPatient[2] += 2.5 * (n > 2)

    def turned(dataset, n):
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, 1] if n == 4 else [1, 0, 0, 0, 1, 0]

    root = tmp_path / "Roe"
    add(root / "gap", "T1 Doe", edit=gap, SeriesNumber=1)
    add(root / "turned", "T1", edit=turned, SeriesNumber=2)
    add(root / "flat", "T1", edit=lambda dataset, n: setattr(dataset, "PixelSpacing", [0, 0]), SeriesNumber=4)
    add(root / "repeated", "T1", frames=2, edit=lambda dataset, n: None, SeriesNumber=3)
    add(root / "good", "T1", SeriesNumber=9, ImageType=["DERIVED", "PRIMARY"])
    add(root / "ct", Modality="CT", edit=lambda dataset, n: dataset.pop("RescaleSlope"))
    columns, reasons, _ = indexed(root)
    assert columns == {"mr": "good"}
    assert {name: reason.partition(" (")[0] for name, reason in reasons.items()} == {
        "gap": "cannot be read, 1 of 7 slices are missing, the first after 35.0 mm along the slice axis",
        "turned": "cannot be read, the slices have different orientations; one parallel stack is needed",
        "flat": "cannot be read, the affine is singular: two axes of the volume point the same way or a spacing is "
        "zero",
        "repeated": "mr is 'T1', which has one frame",
        "ct": "cannot be read, HU cannot be known, DICOM lacks RescaleSlope",
    }
    (tmp_path / "key").write_text("k" * 32)
    said = "\n".join(str(one) for one in build_index(root, pseudonymize=tmp_path / "key").others)
    assert "1 of 7 slices are missing" in said and not any(word in said for word in ("Doe", "Roe", str(tmp_path)))


def test_pet_that_the_manifest_may_complete_stays(tmp_path: Path) -> None:
    add(tmp_path / "pet", frames=2, **(pet_tags() | {"PatientWeight": None}))
    assert indexed(tmp_path)[0] == {"pet": "pet"}


def test_functional_series_are_no_column_and_echo_planar_ones_have_a_word(tmp_path: Path) -> None:
    add(tmp_path / "bold", "rest bold", frames=2)
    add(tmp_path / "unnamed", "x", frames=10, ScanningSequence="EP")
    add(tmp_path / "asl", "pcasl 3D", frames=2)
    add(tmp_path / "one", "x", ScanningSequence="EP")
    add(tmp_path / "dti", "ep2d_diff", frames=10, ScanningSequence="EP")
    columns, reasons, _ = indexed(tmp_path)
    assert columns == {"mr_epi": "one", "mr_dwi": "dti"}
    assert reasons == {
        "bold": "a functional or perfusion series of 2 frames",
        "unnamed": "a functional or perfusion series of 10 frames",
        "asl": "a functional or perfusion series of 2 frames",
    }


def test_a_multiframe_object_is_asked_for_its_frames(tmp_path: Path) -> None:
    groups = [{"FrameContentSequence": {"TemporalPositionIndex": n}} for n in (1, 2) for _ in range(6)]
    stored = np.concatenate([voxels(), voxels(seed=1)], axis=2)
    write_enhanced(tmp_path / "s", stored, [*range(6)] * 2, groups)
    columns, _, notes = indexed(tmp_path)
    assert columns == {"mr": "s"} and notes == ["mr has several frames in 1 row; check and prepare need --frame"]
    types = [{"MRImageFrameTypeSequence": {"ComplexImageComponent": one}} for one in ("MAGNITUDE", "PHASE")]
    write_enhanced(tmp_path / "s", stored, [*range(6)] * 2, [one for one in types for _ in range(6)])
    columns, _, notes = indexed(tmp_path)
    assert columns == {"mr": "s#magnitude", "mr_phase": "s#phase"} and not notes
