"""PET in NIfTI with its PET-BIDS sidecar: the factor by hand for every way to say it, and what is refused."""

import json

import numpy as np
import pytest
from nibabel import Nifti1Image, Nifti1Pair

from mmfusion.errors import ReadError, UnitsError
from mmfusion.io import load_volume, read_header
from mmfusion.io.pet_facts import HALF_LIVES_S

STORED = np.random.default_rng(5).uniform(10, 900, (5, 4, 3)).astype(np.float32)  # below 1000: no guess says Bq/mL
F18, C11 = HALF_LIVES_S["F18"], HALF_LIVES_S["C11"]
FIELDS = {
    "Units": "Bq/mL",
    "TracerRadionuclide": "C11",
    "InjectedRadioactivity": 350,
    "InjectedRadioactivityUnits": "MBq",
    "TimeZero": "10:00:00",
    "ScanStart": 0,
    "InjectionStart": -1800,
    "FrameTimesStart": [600],
    "FrameDuration": [1200],
    "ImageDecayCorrected": True,
    "ImageDecayCorrectionTime": 0,
    "AttenuationCorrection": "CT",
    "PatientWeight": 70,
}


def pet(folder, array=STORED, name="pet.nii.gz", /, **changes):
    """A PET file with a sidecar: :data:`FIELDS` with changes; None takes a field away."""
    kind = Nifti1Pair if name.endswith(".hdr") else Nifti1Image
    kind(array, np.diag([2.0, 3, 4, 1])).to_filename(folder / name)
    fields = {key: value for key, value in (FIELDS | changes).items() if value is not None}
    (folder / f"{name.split('.')[0]}.json").write_text(json.dumps(fields))
    return folder / name


def factor(weight_kg=70.0, dose_bq=350e6, elapsed_s=1800.0, half_life_s=C11):
    """SUV per Bq/mL, the textbook's way."""
    return weight_kg * 1000 / (dose_bq * np.exp(-np.log(2) * elapsed_s / half_life_s))


def assert_factor(path, expected, stored=STORED, **how):
    np.testing.assert_allclose(load_volume(path, modality="pet", **how).array, stored * expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["pet.nii.gz", "pet.nii", "pet.hdr", "sub-01_pet.nii.gz"])
def test_becquerel_becomes_suv(tmp_path, name):
    path = pet(tmp_path, STORED, name)
    assert_factor(path, factor())
    header = read_header(path, modality="pet")
    assert header.units == "SUVbw" and header.notes == (f"by its PET-BIDS sidecar: Bq/mL to SUVbw by {factor():.4g}",)
    assert load_volume(path, modality="t1").units == "a.u."  # what is not PET does not ask


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"Units": "kBq/mL"}, 1000 * factor()),
        ({"Units": "BQML"}, factor()),
        ({"InjectedRadioactivity": 3.5e8, "InjectedRadioactivityUnits": "Bq"}, factor()),
        ({"ImageDecayCorrectionTime": -1800}, factor(elapsed_s=0)),
        ({"InjectionStart": 30}, factor(elapsed_s=-30)),  # injected after the scan began
        ({"TracerRadionuclide": "18F"}, factor(half_life_s=F18)),
        ({"TracerRadionuclide": "^18^Fluorine"}, factor(half_life_s=F18)),
        ({"TracerRadionuclide": "[11C]"}, factor()),
        ({"TracerRadionuclide": "Ga-68"}, factor(half_life_s=4062.6)),
        ({"TracerRadionuclide": None, "RadionuclideHalfLife": 3600}, factor(half_life_s=3600)),
        ({"PatientWeight": None, "BodyWeight": 80}, factor(80)),
        ({"PatientWeight": 70.3, "BodyWeight": 70}, factor(70.3)),
        ({"TimeZero": None}, factor()),
        ({"PatientSize": 175}, factor()),  # in cm, but no height is needed for body weight
        ({"Units": "SUVbw", "InjectedRadioactivity": None}, 1),
        ({"Units": "SUV_bw"}, 1),
        ({"Units": "SUV"}, 1),
    ],
)
def test_ways_to_say_it(tmp_path, changes, expected):
    assert_factor(pet(tmp_path, **changes), expected)


def test_the_sidecar_settles_the_units_and_no_maximum_does(tmp_path):
    assert_factor(pet(tmp_path, 100 * STORED, Units="SUVbw"), 100)
    assert_factor(pet(tmp_path, STORED / 1e4, "low.nii.gz"), factor() / 1e4)


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({"weight_kg": "84"}, factor(84)),
        ({"dose_mbq": 700, "half_life_s": "3600"}, factor(dose_bq=700e6, half_life_s=3600)),
        ({"injection_time": "09:45:00"}, factor(elapsed_s=900)),
        ({"acquisition_time": "09:40"}, factor(elapsed_s=600)),
        ({"injection_time": "2020-01-01T23:50:00", "acquisition_time": "2020-01-02T00:10:00"}, factor(elapsed_s=1200)),
        ({"height_cm": "", "sex": "unknown"}, factor()),
    ],
)
def test_the_manifest_overrides_the_sidecar(tmp_path, details, expected):
    assert_factor(pet(tmp_path), expected, pet=details)


def test_other_suv(tmp_path):
    path = pet(tmp_path, PatientSize=1.75, PatientSex="F")
    assert_factor(path, factor(45.19701), suv="lbm")
    assert_factor(path, factor(18.48143), suv="bsa")
    assert_factor(pet(tmp_path, Units="SUVlbm"), 1, suv="lbm")
    with pytest.raises(UnitsError, match=r"pet\.json: Units is SUVlbm, but SUVbw is wanted\. Use --suv lbm, or give"):
        read_header(path, modality="pet")
    pet(tmp_path, Units="SUV")
    with pytest.raises(UnitsError, match=r"Units is SUV, taken as SUVbw, but SUVlbm is wanted\. Use --suv bw"):
        read_header(path, modality="pet", suv="lbm")
    pet(tmp_path)
    with pytest.raises(UnitsError, match=r"it lacks PatientSize, PatientSex\. Add it, or give height_cm, sex in the"):
        read_header(path, modality="pet", suv="lbm")


FRAMES = np.stack([STORED, 2 * STORED, 3 * STORED], -1)
DYNAMIC = {"FrameTimesStart": [0, 600, 1200], "FrameDuration": [600, 600, 300]}


def test_frames_that_are_decay_corrected_share_one_factor(tmp_path):
    path = pet(tmp_path, FRAMES, **DYNAMIC)
    assert_factor(path, 3 * factor(), frame="last")
    assert_factor(path, (600 * 1 + 600 * 2 + 300 * 3) / 1500 * factor(), frame="mean")


def test_a_frame_that_is_not_decay_corrected_is_by_its_own_time(tmp_path):
    path = pet(tmp_path, FRAMES, **DYNAMIC, ImageDecayCorrected=False, ImageDecayCorrectionTime=0)
    for frame, (start, duration) in enumerate(zip(*DYNAMIC.values(), strict=True)):
        times = 1800 + np.linspace(start, start + duration, 20001)
        left = np.exp(-np.log(2) / C11 * times).mean()  # what is left of the dose, on average over the frame
        assert_factor(path, (frame + 1) * 70e3 / (350e6 * left), frame=frame)
    with pytest.raises(UnitsError, match=r"ImageDecayCorrected is false\), so their mean is no SUV\. Choose one"):
        read_header(path, modality="pet", frame="mean")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PatientWeight": None}, r"it lacks PatientWeight\. Add it, or give weight_kg in the manifest"),
        ({"InjectedRadioactivity": None}, r"it lacks InjectedRadioactivity\. Add it, or give dose_mbq in the"),
        *[
            ({"InjectedRadioactivity": dose}, rf"InjectedRadioactivity is {dose} MBq; 1 to 10000 MBq is expected")
            for dose in (-350, 0, 0.5, 20000)
        ],
        ({"InjectedRadioactivityUnits": None}, "InjectedRadioactivityUnits is missing; Bq, kBq, MBq or GBq is"),
        ({"InjectedRadioactivityUnits": "mCi"}, "InjectedRadioactivityUnits is mCi; Bq, kBq, MBq or GBq is expected"),
        ({"InjectedRadioactivityUnits": "mBq"}, "InjectedRadioactivityUnits is mBq; Bq, kBq, MBq or GBq is expected"),
        ({"TracerRadionuclide": "n/a"}, r"it lacks TracerRadionuclide\. Add it, or give half_life_s"),
        ({"TracerRadionuclide": "Xx99"}, "TracerRadionuclide is Xx99; the half-life is known of C11, .*Give half"),
        ({"RadionuclideHalfLife": 6586.2}, r"HalfLife 6586\.2 s is not that of the radionuclide C11 \(1221\.84"),
        ({"BodyWeight": 154}, "PatientWeight and BodyWeight contradict each other"),
        ({"InjectionStart": None}, r"it lacks InjectionStart\. Add it, or give injection_time in the manifest"),
        ({"ImageDecayCorrected": None}, r"it lacks ImageDecayCorrected\. Add it$"),
        ({"ImageDecayCorrectionTime": None}, r"it lacks ImageDecayCorrectionTime\. Add it, or give acquisition_time"),
        ({"ImageDecayCorrected": False, "FrameDuration": None}, r"it lacks FrameDuration\. Add it$"),
        ({"FrameTimesStart": [0, 600]}, "FrameTimesStart has 2 values, but the file has 1 frames"),
        ({"InjectionStart": "09:30:00"}, "InjectionStart is '09:30:00', not a number"),
        ({"InjectionStart": -36000}, r"injection lies 10\.0 h before the scan, 29\.5 half-lives of the"),
        ({"AttenuationCorrection": "NONE, 0.000000 cm-1,"}, "AttenuationCorrection is none. Give the corrected"),
        ({"Units": None}, "it lacks Units; Bq/mL, kBq/mL, SUVbw, SUVlbm or SUVbsa is expected"),
        ({"Units": "counts"}, "Units is counts; Bq/mL"),
        ({"Units": "mBq/mL"}, "Units is mBq/mL; Bq/mL"),
    ],
)  # fmt: skip
def test_what_is_missing_or_contradicts_is_named_with_the_sidecar(tmp_path, changes, message):
    path = pet(tmp_path, **changes)
    with pytest.raises(UnitsError, match=message) as refused:
        read_header(path, modality="pet")
    assert str(refused.value).startswith(f"{tmp_path / 'pet.json'}: ")


def test_a_long_lived_tracer_needs_dates(tmp_path):
    path = pet(tmp_path, TracerRadionuclide="Zr89", InjectionStart=-432000)
    assert_factor(path, factor(elapsed_s=432000, half_life_s=HALF_LIVES_S["Zr89"]))
    message = (
        r"pet\.json: a half-life of 282276 s lets the injection lie days before the scan, .* with dates in the man"
    )
    with pytest.raises(UnitsError, match=message):
        read_header(path, modality="pet", pet={"injection_time": "10:00"})


def test_a_clock_of_the_manifest_needs_time_zero(tmp_path):
    path = pet(tmp_path, TimeZero=None)
    with pytest.raises(UnitsError, match=r"it lacks TimeZero\. Add it$"):
        read_header(path, modality="pet", pet={"injection_time": "09:30"})
    both = {"injection_time": "09:30", "acquisition_time": "10:00"}
    assert_factor(pet(tmp_path, TimeZero=None, InjectionStart=None, ImageDecayCorrectionTime=None), factor(), pet=both)


@pytest.mark.parametrize("text", ["{", "[1]", "\0"])
def test_a_damaged_sidecar_is_named(tmp_path, text):
    path = pet(tmp_path)
    (tmp_path / "pet.json").write_text(text)
    with pytest.raises(ReadError, match=r"pet\.json (is not JSON|holds no fields)"):
        read_header(path, modality="pet")


@pytest.mark.parametrize(
    ("above", "applies"),
    [("pet.json", True), ("sub-1/sub-1_pet.json", True), ("trc-FDG_pet.json", True), ("trc-X_pet.json", False)]
    + [("ct.json", False)],
)
def test_fields_that_may_be_inherited_are_refused(tmp_path, above, applies):
    (tmp_path / "sub-1" / "pet").mkdir(parents=True)
    (tmp_path / "dataset_description.json").write_text("{}")
    (tmp_path / above).write_text('{"Units": "Bq/mL"}')
    path = pet(tmp_path / "sub-1" / "pet", STORED, "sub-1_trc-FDG_pet.nii.gz")
    if not applies:
        assert_factor(path, factor())
        return
    where = "1 folder above it" if "/" in above else "2 folders above it"  # no name: it may be the person's
    message = rf"may be inherited from another \*pet\.json, {where}, which is not read\. Put all fields into"
    with pytest.raises(UnitsError, match=message):
        read_header(path, modality="pet")


def test_without_a_sidecar_other_suv_is_refused(tmp_path):
    path = pet(tmp_path)
    (tmp_path / "pet.json").unlink()
    assert_factor(path, 1)
    with pytest.raises(UnitsError, match=r"taken as SUVbw, but SUVbsa is wanted\. Say its Units in a sidecar"):
        load_volume(path, modality="pet", suv="bsa")


DICOM = {  # as dcm2niix writes them: injected one hour before, corrected to the start of the series
    "Units": "BQML", "TracerRadionuclide": None, "InjectedRadioactivity": None, "InjectedRadioactivityUnits": None,
    "ImageDecayCorrected": None, "ImageDecayCorrectionTime": None, "RadionuclideTotalDose": 350e6,
    "RadionuclideHalfLife": 6586.2, "DecayCorrection": "START", "InjectionStart": -3600, "TimeZero": "10:00:00",
    "SeriesTime": "10:00:00.000000", "AcquisitionTime": "10:00:00.000000", "FrameTimesStart": [0],
    "FrameDuration": [1200], "DecayFactor": [1.0645],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "elapsed_s"),
    [
        ({}, 3600),
        ({"PatientWeight": "70", "RadionuclideTotalDose": "350000000"}, 3600),  # from a table
        ({"DecayFactor": None}, 3600),
        ({"SeriesTime": None}, 3600),
        ({"SeriesTime": "15:30:00"}, 3600),  # of a processing
        ({"DecayCorrection": "ADMIN", "DecayFactor": 1.0095}, 0),
        ({"DecayCorrection": "ADMIN", "InjectionStart": None}, 0),
        # a bed or a part of a long scan 40 min later: 2^(2400 / 6586.2) x 1.0645
        ({"AcquisitionTime": "10:40:00", "DecayFactor": [1.3704]}, 3600),
        ({"TimeZero": "10:40:00", "InjectionStart": -6000, "AcquisitionTime": "10:40:00", "DecayFactor": 1.3704}, 3600),
        ({"TracerRadionuclide": "F18", "RadionuclideHalfLife": None}, 3600),
        ({"InjectedRadioactivity": 350, "InjectedRadioactivityUnits": "MBq"}, 3600),  # says it twice
        ({"ImageDecayCorrected": "True"}, 3600),
    ],
)
def test_fields_of_dcm2niix(tmp_path, changes, elapsed_s):
    assert_factor(pet(tmp_path, **(DICOM | changes)), factor(elapsed_s=elapsed_s, half_life_s=F18))


def test_frames_of_dcm2niix_without_decay_correction(tmp_path):
    times = 3600 + np.linspace(0, 1200, 20001)
    path = pet(tmp_path, **(DICOM | {"DecayCorrection": "NONE", "DecayFactor": [1]}))
    assert_factor(path, 70e3 / (350e6 * np.exp(-np.log(2) / F18 * times).mean()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # TimeZero is that of a part 50 min into a scan; DecayFactor and SeriesTime say where values refer to
        (
            {"ImageDecayCorrectionTime": 0, "SeriesTime": "09:10:00", "DecayFactor": [1.4596]},
            r"Time \(0 s after TimeZero\) contradicts DecayFactor, by which the values refer to -(299\d|300\d) s",
        ),
        ({"DecayFactor": [1.4596]}, r"SeriesTime \(0 s after TimeZero\) contradicts DecayFactor"),
        (
            {"ImageDecayCorrectionTime": 0, "SeriesTime": "09:10:00", "DecayFactor": None},
            r"contradicts SeriesTime, which DecayCorrection START refers to \(-3000 s\)",
        ),
        ({"ImageDecayCorrected": False}, "ImageDecayCorrected is false, but DecayCorrection is START"),
        ({"ImageDecayCorrected": "false"}, "ImageDecayCorrected is false, but DecayCorrection is START"),
        ({"ImageDecayCorrected": "START"}, "ImageDecayCorrected is 'START'; true or false is expected"),
        ({"DecayCorrection": "ADMIN", "ImageDecayCorrectionTime": 0}, r"Time \(0 s .* ADMIN, by which .* \(-3600 s\)"),
        ({"ImageDecayCorrected": True, "DecayCorrection": "NONE"}, "is true, but DecayCorrection is NONE"),
        ({"InjectedRadioactivity": 300, "InjectedRadioactivityUnits": "MBq"}, "RadionuclideTotalDose .Bq. contradict"),
        ({"RadionuclideTotalDose": 350}, "RadionuclideTotalDose is 0.00035 MBq; 1 to 10000 MBq is expected"),
        ({"PatientWeight": 70000}, r"a body weight of 70000 kg cannot be\. If it is in grams, use --weight-unit g"),
        ({"InjectionStart": 23400}, "the injection lies 6.5 h after the scan. Correct InjectionStart"),
        ({"Radiopharmaceutical": "Gallium^68"}, "6586.2 s is not that of the radionuclide Ga68"),
        ({"TracerRadionuclide": "Tc99m"}, "the radionuclide is Tc99m, which emits no positrons"),
        ({"DecayCorrection": "DOE^JOHN"}, "it lacks ImageDecayCorrected, ImageDecayCorrectionTime"),
        ({"SeriesTime": "DOE^JOHN"}, "SeriesTime is not a time; 08:45:00 is expected"),
    ],
)
def test_contradictions_of_dcm2niix_are_named(tmp_path, changes, message):
    with pytest.raises(UnitsError, match=message) as refused:
        read_header(pet(tmp_path, **(DICOM | changes)), modality="pet")
    assert "DOE" not in str(refused.value)


def test_times_of_day_without_a_time_zero(tmp_path):
    """As older converters write them: the manifest says the time of day of the injection."""
    path = pet(tmp_path, **(DICOM | {"TimeZero": None, "InjectionStart": None, "SeriesTime": "09:58:00"}))
    with pytest.raises(UnitsError, match="it lacks InjectionStart"):
        read_header(path, modality="pet")
    with pytest.raises(UnitsError, match=r"SeriesTime \(-600 s after TimeZero\) contradicts DecayFactor"):
        fields = DICOM | {"TimeZero": None, "InjectionStart": None, "SeriesTime": "09:50:00"}
        read_header(pet(tmp_path, **fields), modality="pet", pet={"injection_time": "09:00"})
    path = pet(tmp_path, **(DICOM | {"TimeZero": None, "InjectionStart": None, "SeriesTime": None}))
    assert_factor(path, factor(elapsed_s=3600, half_life_s=F18), pet={"injection_time": "09:00"})


def test_a_weight_in_pounds(tmp_path):
    assert_factor(pet(tmp_path, PatientWeight=70 / 0.45359237), factor(), weight_unit="lb")


def test_values_that_are_to_be_no_suv(tmp_path):
    path = pet(tmp_path, Units="kBq/mL", PatientWeight=None)
    assert_factor(path, 1000, suv="none")
    assert read_header(path, modality="pet", suv="none").units == "Bq/mL"
    pet(tmp_path, Units="counts", PatientWeight=None)
    assert_factor(path, 1, suv="none")
    assert read_header(path, modality="pet", suv="none").units == "stored"
    (tmp_path / "pet.json").unlink()
    assert load_volume(path, modality="pet", suv="none").units == "stored"


def test_frames_are_chosen_by_number_and_by_time(tmp_path):
    path = pet(tmp_path, FRAMES, **DYNAMIC)
    for frame, weighted in (
        ("0-1", 1.5),
        ("1-2", (600 * 2 + 300 * 3) / 900),
        ("10min-25min", (600 * 2 + 300 * 3) / 900),
    ):
        assert_factor(path, weighted * factor(), frame=frame)
    assert_factor(path, 3 * factor(), frame="1200s-1500s")
    header = read_header(path, modality="pet", frame="10-25min")
    assert header.notes[0] == "3 frames: the mean of 1 to 2 (10-25min) is used, weighted by duration"
    assert header.doubts == ()
    for frame, filled in {"10min-60min": "600 to 1500", "5min-25min": "600 to 1500", "0s-1400s": "0 to 1200"}.items():
        [doubt] = read_header(path, modality="pet", frame=frame).doubts
        assert f"s fill {filled} s of it. Choose a window" in doubt
    with pytest.raises(ReadError, match="no frame lies wholly between 60 and 540 s .*; the 3 frames end after 1500 s"):
        read_header(path, modality="pet", frame="1min-9min")
    pet(tmp_path, FRAMES, **(DYNAMIC | {"FrameTimesStart": None, "ImageDecayCorrectionTime": 0}))
    with pytest.raises(ReadError, match=r"start and duration of its frames are not known.*as --frame 20-24"):
        read_header(path, modality="pet", frame="10-25min")
