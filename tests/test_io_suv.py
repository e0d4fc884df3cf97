"""SUV: the factor by hand for every way that scanners write their times and units."""

import numpy as np
import pytest
from io_dicom import PET_TAGS, new_file, pet_tags, voxels, write_series
from io_dicom import pet_header as header
from pydicom.uid import ImplicitVRLittleEndian

from mmfusion.errors import OptionError, UnitsError
from mmfusion.io import load_volume, read_header, suv_factor
from mmfusion.io.suv import body_surface_m2, lean_body_mass_kg
from mmfusion.io.suv_dicom import earliest_acquisition
from mmfusion.io.times import parse_time

ONE_HOUR = 70e3 / (350e6 / 2)  # 70 kg, 350 MBq, one half-life later


def test_start_correction_decays_the_dose_to_the_series_time():
    assert suv_factor(header()) == pytest.approx(ONE_HOUR)


def test_admin_correction_needs_no_times():
    found = header(DecayCorrection="ADMIN", without=("SeriesTime", "AcquisitionTime"))
    assert suv_factor(found) == pytest.approx(70e3 / 350e6)


def test_a_series_time_after_the_acquisition_is_that_of_a_processing():
    first = header(AcquisitionTime="100000", SeriesTime="153000")
    later = header(AcquisitionTime="101500", SeriesTime="153000")
    assert earliest_acquisition([later, first]) == parse_time("20200102100000")
    for found in (first, later):
        assert suv_factor(found, first_acquisition=earliest_acquisition([later, first])) == pytest.approx(ONE_HOUR)
    undated = header(SeriesTime="153000", without=("SeriesDate", "AcquisitionDate"))
    assert suv_factor(undated, first_acquisition=earliest_acquisition([undated])) == pytest.approx(ONE_HOUR)


def test_later_bed_positions_refer_to_the_start_of_the_series():
    assert suv_factor(header(AcquisitionTime="101500")) == pytest.approx(ONE_HOUR)


def test_ge_keeps_the_time_of_the_scan_in_a_private_tag():
    found = header(SeriesTime="153000", AcquisitionTime="101500")
    found.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20200102100000.00")
    assert suv_factor(found) == pytest.approx(ONE_HOUR)


def test_injection_before_midnight_and_the_full_date_and_time():
    night = {"SeriesTime": "003000", "AcquisitionTime": "003000"}
    assert suv_factor(header(tracer={"RadiopharmaceuticalStartTime": "233000"}, **night)) == pytest.approx(ONE_HOUR)
    full = {"RadiopharmaceuticalStartDateTime": "20200101233000", "RadiopharmaceuticalStartTime": "010000"}
    assert suv_factor(header(tracer=full, **night)) == pytest.approx(ONE_HOUR)


def test_the_first_slice_of_a_scan_across_midnight_is_that_of_the_evening():
    clocks = ("000500", "235500", "001000")
    headers = [header(without=("SeriesDate", "AcquisitionDate"), AcquisitionTime=clock) for clock in clocks]
    assert earliest_acquisition(headers) == parse_time("235500")
    assert earliest_acquisition([]) is None


def test_a_date_moved_by_anonymization_gives_way_to_the_clock():
    moved = {"RadiopharmaceuticalStartDateTime": "20190501090000"}
    assert suv_factor(header(tracer=moved)) == pytest.approx(ONE_HOUR)


def test_uncorrected_frames_are_brought_back_one_by_one():
    tags = {"DecayCorrection": "NONE", "CorrectedImage": ["ATTN"], "ActualFrameDuration": 600_000}
    rate = np.log(2) / 3600
    for clock, elapsed in {"100000": 3600, "101000": 4200}.items():
        mean_left = np.exp(-rate * np.linspace(elapsed, elapsed + 600, 20001)).mean()
        assert suv_factor(header(AcquisitionTime=clock, **tags)) == pytest.approx(70e3 / 350e6 / mean_left, rel=1e-6)


def test_an_uncorrected_frame_without_duration_is_refused(tmp_path):
    tags = {"DecayCorrection": "NONE", "CorrectedImage": ["ATTN"]}
    with pytest.raises(
        UnitsError, match=r"DICOM lacks ActualFrameDuration \(0018,1242\), over which .*Export the scan"
    ):
        suv_factor(header(**tags))


def test_gml_is_suv_already_if_by_body_weight():
    assert suv_factor(header(Units="GML", without=("PatientWeight",))) == 1
    assert suv_factor(header(Units="GML", SUVType="BW")) == 1
    with pytest.raises(UnitsError, match=r"by LBM, but SUVbw is wanted\. Use --suv lbm, or export the scan as BQML"):
        suv_factor(header(Units="GML", SUVType="LBM"))
    with pytest.raises(UnitsError, match=r"by IBW, but SUVbw is wanted\. Export the scan as BQML"):
        suv_factor(header(Units="GML", SUVType="IBW"))


@pytest.mark.parametrize(
    ("suv", "units", "stored", "fits"),
    [
        ("lbm", "GML", "LBM", True), ("lbm", "GML", "LBMJANMA", True), ("lbm", "GML", "LBMJAMES128", False),
        ("lbm", "GML", None, False), ("bsa", "CM2ML", "BSA", True), ("bsa", "CM2ML", None, True),
        ("bsa", "GML", "BSA", True), ("bsa", "GML", None, False), ("bw", "CM2ML", None, False),
    ],
)  # fmt: skip
def test_stored_suv_must_be_the_one_that_is_wanted(suv, units, stored, fits):
    found = header(Units=units, SUVType=stored)
    if fits:
        assert suv_factor(found, suv=suv) == 1
    else:
        with pytest.raises(UnitsError, match=f"but SUV{suv} is wanted"):
            suv_factor(found, suv=suv)


def test_lean_body_mass_and_body_surface():
    # 70 kg at 175 cm: body mass index 22.857; by the papers' formulas on paper
    assert lean_body_mass_kg(70, 175, "M") == pytest.approx(9270 * 70 / (6680 + 216 * 22.857142857))
    assert lean_body_mass_kg(70, 175, "M") == pytest.approx(55.8571, abs=1e-3)
    assert lean_body_mass_kg(70, 175, "F") == pytest.approx(45.1970, abs=1e-3)
    # 71.84 cm2 x 70^0.425 x 175^0.725, by logarithms
    by_logarithms = np.exp(np.log(71.84e-4) + 0.425 * np.log(70) + 0.725 * np.log(175))
    assert body_surface_m2(70, 175) == pytest.approx(by_logarithms) == pytest.approx(1.84814, abs=1e-4)


@pytest.mark.parametrize(
    ("suv", "sex", "size"),
    [("lbm", "M", 55.8571e3), ("lbm", "F", 45.1970e3), ("bsa", "F", 1.84814e4), ("bsa", None, 1.84814e4)],
)
def test_suv_by_lean_body_mass_and_by_body_surface(suv, sex, size):
    found = header(PatientSize=1.75, PatientSex=sex)
    assert suv_factor(found, suv=suv) == pytest.approx(size / (350e6 / 2), rel=1e-4)
    bare = header(PatientSex="O")
    details = {"height_cm": "175", "sex": {"M": "male", "F": "f", None: ""}[sex]}
    assert suv_factor(bare, suv=suv, pet=details) == pytest.approx(size / (350e6 / 2), rel=1e-4)


@pytest.mark.parametrize(
    ("tags", "details", "message"),
    [
        ({}, {}, r"lacks PatientSize \(0010,1020\), PatientSex \(0010,0040\)\. Give height_cm, sex in the manifest"),
        ({"PatientSize": 1.75, "PatientSex": "O"}, {}, r"lacks PatientSex \(0010,0040\)\. Give sex in the manifest"),
        ({"PatientSize": 175, "PatientSex": "F"}, {}, r"a height of 17500 cm cannot be \(DICOM has meters\)"),
        ({"PatientSize": 1.75}, {"sex": "1"}, "sex must be M or F, found '1'"),
        ({"PatientSize": 1.75}, {"height_cm": "1.75", "sex": "F"}, "a height of 1.75 cm cannot be"),
    ],
)
def test_what_suv_by_lean_body_mass_lacks_is_named(tags, details, message):
    with pytest.raises(UnitsError, match=message):
        suv_factor(header(**tags), suv="lbm", pet=details)
    assert suv_factor(header(**tags), pet=details) == pytest.approx(ONE_HOUR)  # body weight needs none of it


def test_philips_counts_become_other_suv_only_through_becquerel():
    found = header(Units="CNTS", PatientSize=1.75)
    block = found.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x00, "DS", "0.0003")
    with pytest.raises(UnitsError, match=r"SUVbsa cannot be computed, .*SUVbw alone, \(7053,1000\), not that to Bq/mL"):
        suv_factor(found, suv="bsa")
    block.add_new(0x09, "DS", "2.5")
    assert suv_factor(found, suv="bsa") == pytest.approx(2.5 * 1.84814e4 / (350e6 / 2), rel=1e-4)


def test_a_series_in_other_suv_says_so(tmp_path):
    stored = np.abs(voxels())
    write_series(tmp_path / "bq", stored, PatientSize=1.75, PatientSex="F", **pet_tags())
    volume = load_volume(tmp_path / "bq", suv="lbm")
    assert volume.units == read_header(tmp_path / "bq", suv="lbm").units == "SUVlbm"
    np.testing.assert_allclose(volume.array[::-1, ::-1], stored * 45.1970e3 / 175e6, rtol=1e-4)
    assert volume.meta["notes"] == ["Bq/mL to SUVlbm by 0.0002583 per Bq/mL, 1.0 h after the injection"]
    write_series(tmp_path / "gml", stored, **(pet_tags() | {"Units": "GML", "SUVType": "LBM"}))
    assert "SUVlbm as it was exported, by a formula" in load_volume(tmp_path / "gml", suv="lbm").meta["notes"][0]
    with pytest.raises(OptionError, match="unknown suv 'mass'. Known: bw, lbm, bsa"):
        read_header(tmp_path / "bq", suv="mass")


def test_an_injection_at_midnight_is_a_time():
    night = {"SeriesTime": "010000", "AcquisitionTime": "010000"}
    assert suv_factor(header(tracer={"RadiopharmaceuticalStartTime": "000000"}, **night)) == pytest.approx(ONE_HOUR)
    assert suv_factor(header(), pet={"injection_time": "23:00", "acquisition_time": "00:00"}) == pytest.approx(ONE_HOUR)


def test_philips_counts_have_private_factors():
    found = header(Units="CNTS")
    with pytest.raises(UnitsError, match=r"Philips' scale factors \(7053,1000\) and \(7053,1009\)"):
        suv_factor(found)
    block = found.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x09, "DS", "2.5")
    assert suv_factor(found) == pytest.approx(2.5 * ONE_HOUR)
    block.add_new(0x00, "DS", "0.0003")
    assert suv_factor(found) == pytest.approx(0.0003)


@pytest.mark.parametrize("implicit", [False, True], ids=["explicit VR", "implicit VR"])
def test_private_factors_count_in_the_block_of_their_creator_alone(tmp_path, implicit):
    def makers(*owners):
        def edit(dataset, n):
            for owner, factor in owners:
                dataset.private_block(0x7053, owner, create=True).add_new(0x00, "DS", factor)
            if implicit:
                dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian

        return edit

    stored, philips, other = np.abs(voxels()), ("Philips PET Private Group", "0.002"), ("SOMEONE ELSE", "0.3")
    tags = pet_tags() | {"Units": "CNTS"}
    write_series(tmp_path / "first", stored, edit=makers(philips, other), **tags)
    write_series(tmp_path / "second", stored, edit=makers(other, philips), **tags)
    for name in ("first", "second"):
        np.testing.assert_allclose(load_volume(tmp_path / name).array[::-1, ::-1], stored * 0.002, rtol=1e-6)
    write_series(tmp_path / "other", stored, edit=makers(other), **tags)
    with pytest.raises(UnitsError, match="lacks Philips' scale factors"):
        read_header(tmp_path / "other")


@pytest.mark.parametrize("factor", ["-0.1", "nan", "inf", "much"])
def test_private_factors_must_be_positive_numbers(factor):
    for element, tag in ((0x00, "7053,1000"), (0x09, "7053,1009")):
        found = header(Units="CNTS")
        found.private_block(0x7053, "Philips PET Private Group", create=True).add_new(element, "LO", factor)
        with pytest.raises(UnitsError, match=rf"Philips' scale factor \({tag}\) is not a positive number"):
            suv_factor(found)


def test_a_zero_suv_factor_of_philips_is_an_unknown_one():
    found = header(Units="CNTS")
    block = found.private_block(0x7053, "Philips PET Private Group", create=True)
    block.add_new(0x00, "DS", "0")
    with pytest.raises(UnitsError, match="lacks Philips' scale factors"):
        suv_factor(found)
    block.add_new(0x09, "DS", "2.5")
    assert suv_factor(found) == pytest.approx(2.5 * ONE_HOUR)


def test_the_time_of_another_maker_is_not_believed():
    found = header(SeriesTime="153000", AcquisitionTime="100000")
    found.private_block(0x0009, "SOMEONE ELSE", create=True).add_new(0x0D, "DT", "20200102120000.00")
    assert suv_factor(found) == pytest.approx(ONE_HOUR)
    found.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20200102110000.00")
    assert suv_factor(found) == pytest.approx(2 * ONE_HOUR)


@pytest.mark.parametrize(
    ("tags", "tracer", "message"),
    [
        ({"PatientWeight": None}, {}, r"pet: SUV cannot .* lacks PatientWeight \(0010,1030\)\. Give weight_kg"),
        ({"PatientWeight": 0}, {}, "PatientWeight"),
        ({}, {"RadionuclideTotalDose": None}, r"RadionuclideTotalDose \(0018,1074\)\. Give dose_mbq"),
        ({}, {"RadionuclideHalfLife": None}, r"RadionuclideHalfLife \(0018,1075\)"),
        ({}, {"RadiopharmaceuticalStartTime": None}, r"RadiopharmaceuticalStartTime \(0018,1072\)"),
        ({"RadiopharmaceuticalInformationSequence": None}, {}, "TotalDose .*HalfLife .*StartTime"),
        ({"SeriesTime": None, "AcquisitionTime": None}, {}, r"lacks AcquisitionTime \(0008,0032\)"),
        ({"CorrectedImage": ["DECY"]}, {}, "lacks ATTN"),
        ({"CorrectedImage": ["ATTN"]}, {}, "is 'START' and CorrectedImage .* lacks DECY"),
        ({"DecayCorrection": None}, {}, "is '' and CorrectedImage .* has DECY"),
        ({"Units": None}, {}, r"DICOM lacks Units \(0054,1001\)"),
        ({"Units": "PROPCPS"}, {}, "is PROPCPS; BQML, GML, CM2ML or CNTS"),
        ({}, {"RadionuclideTotalDose": 350}, r"RadionuclideTotalDose \(0018,1074\) is 0\.00035 MBq; 1 to 10000 MBq is"),
        ({"SeriesTime": "085000", "AcquisitionTime": "085000"}, {}, "after the scan or more than 6 half-lives"),
    ],
)  # fmt: skip
def test_what_is_missing_or_contradicts_is_named(tags, tracer, message):
    with pytest.raises(UnitsError, match=message):
        suv_factor(header(tracer=tracer, **tags))


def test_the_manifest_fills_and_overrides_tags():
    details = {"weight_kg": "140", "dose_mbq": 700, "half_life_s": 1800, "injection_time": "09:30"}
    found = header(without=("PatientWeight",), tracer={"RadionuclideTotalDose": None})
    assert suv_factor(found, pet=details) == pytest.approx(ONE_HOUR)
    assert suv_factor(header(), pet={"acquisition_time": "2020-01-02T11:00:00"}) == pytest.approx(2 * ONE_HOUR)
    assert suv_factor(header(), pet={"weight_kg": "", "dose_mbq": None}) == pytest.approx(ONE_HOUR)
    with pytest.raises(UnitsError, match="a: SUV cannot be computed, dose_mbq must be a positive number, found 'x'"):
        suv_factor(header(), pet={"dose_mbq": "x"}, source="a")


@pytest.mark.parametrize("text", ["084500", "08:45", "08:45:00", "8:45:00", "0845", "084500.000000"])
def test_clock_times(text):
    assert parse_time(text).total_seconds() == 8.75 * 3600


@pytest.mark.parametrize("text", ["20240229084500.5", "2024-02-29T08:45:00.5", "2024-02-29 08:45:00.5+01:00"])
def test_dates_with_times(text):
    assert parse_time(text).isoformat()[:26] == "2024-02-29T08:45:00.500000"


@pytest.mark.parametrize("text", ["8h45", "20240102", "2023-02-29T08:45:00", "08:45 pm", "25:30", "08:75", "240000"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError):
        parse_time(text)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, when the test writes such a value
def test_a_broken_time_in_the_header_is_named_with_the_scan():
    found = header(AcquisitionTime="100000")
    with pytest.raises(UnitsError, match="scan 7: SUV cannot be computed, 'later' is not a time"):
        suv_factor(found, pet={"acquisition_time": "later"}, source="scan 7")
    for tag in ("AcquisitionTime", "SeriesTime", "AcquisitionDateTime", "TimezoneOffsetFromUTC"):
        found = header()
        setattr(found, tag, "Doe^Jo")
        with pytest.raises(UnitsError, match=rf"cannot be computed, {tag} .*is not an? (time|offset)") as refused:
            suv_factor(found)
        assert "Doe" not in str(refused.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, when the test writes such a value
@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("Units", r"Units \(0054,1001\) is no word of DICOM; BQML"),
        ("DecayCorrection", r"DecayCorrection \(0054,1102\) is no word of DICOM and"),
        ("SUVType", r"normalized in a way that SUVType \(0054,1006\) has no word of DICOM for, but SUVbw is wanted"),
    ],
)
def test_what_a_damaged_tag_holds_is_not_told(tag, message):
    found = header(Units="GML" if tag == "SUVType" else "BQML")
    setattr(found, tag, "DOE^JOHN")
    with pytest.raises(UnitsError, match=message) as refused:
        suv_factor(found)
    assert "DOE" not in str(refused.value)


def test_times_with_offsets_from_utc_are_converted():
    noon = {"RadiopharmaceuticalStartDateTime": "20200102080000+0000", "RadiopharmaceuticalStartTime": None}
    assert suv_factor(header(tracer=noon, TimezoneOffsetFromUTC="+0100")) == pytest.approx(ONE_HOUR)
    acquired = {"AcquisitionDateTime": "20200102100000.0+0100", "DecayCorrection": "START", "SeriesTime": "153000"}
    found = header(tracer=noon, without=("AcquisitionTime",), **acquired)
    assert suv_factor(found, first_acquisition=earliest_acquisition([found])) == pytest.approx(ONE_HOUR)
    told = {"injection_time": "2020-01-02T08:00:00Z", "acquisition_time": "2020-01-02T10:00:00+01:00"}
    assert suv_factor(header(), pet=told) == pytest.approx(ONE_HOUR)


def test_an_offset_on_one_side_gives_way_to_the_clock_or_is_refused():
    one = {"RadiopharmaceuticalStartDateTime": "20200102080000+0000"}
    assert suv_factor(header(tracer=one)) == pytest.approx(ONE_HOUR)
    with pytest.raises(
        UnitsError, match=r"only one of injection and scan has an offset from UTC\. Give injection_time"
    ):
        suv_factor(header(tracer=one | {"RadiopharmaceuticalStartTime": None}))
    with pytest.raises(UnitsError, match=r"'10:00\+01:00' has an offset from UTC, but no date\. Give both"):
        suv_factor(header(), pet={"acquisition_time": "10:00+01:00"})


def test_a_long_lived_tracer_needs_dates():
    zirconium = {"RadionuclideHalfLife": 282276}
    message = "a half-life of 282276 s lets the injection lie days .* injection_time and acquisition_time with dates in"
    with pytest.raises(UnitsError, match=message):
        suv_factor(header(tracer=zirconium))
    dated = zirconium | {"RadiopharmaceuticalStartDateTime": "20191228100000"}
    expected = 70e3 / 350e6 * 2 ** (5 * 86400 / 282276)
    assert suv_factor(header(tracer=dated)) == pytest.approx(expected)
    with pytest.raises(UnitsError, match=message):
        suv_factor(header(tracer=dated, without=("SeriesDate", "AcquisitionDate")))
    assert earliest_acquisition([new_file(AcquisitionDate="20200102"), new_file()]) is None


def test_a_series_in_becquerel_becomes_suv_slice_by_slice(tmp_path):
    stored, slopes = np.abs(voxels()), np.linspace(1, 6, 6)
    write_series(tmp_path, stored, slopes=slopes, **pet_tags())
    volume = load_volume(tmp_path, modality="pet")
    assert volume.units == "SUVbw" and "Bq/mL to SUVbw by 0.0004" in volume.meta["notes"][0]
    np.testing.assert_allclose(volume.array[::-1, ::-1], stored * slopes * ONE_HOUR, rtol=1e-6)


def test_a_series_without_weight_is_refused_by_its_header_alone(tmp_path):
    write_series(tmp_path, voxels(), **(pet_tags() | {"PatientWeight": None}))
    with pytest.raises(UnitsError, match=f"{tmp_path.name}: SUV cannot be computed, DICOM lacks PatientWeight"):
        read_header(tmp_path)
    assert read_header(tmp_path, pet={"weight_kg": 70}).units == "SUVbw"
    assert PET_TAGS["PatientWeight"] == 70


def test_a_series_without_rescaling_has_no_suv(tmp_path):
    write_series(tmp_path, voxels(), edit=lambda d, n: delattr(d, "RescaleSlope"), **pet_tags())
    with pytest.raises(UnitsError, match=r"SUV cannot be known, DICOM lacks RescaleSlope \(0028,1053\)"):
        read_header(tmp_path)


def test_private_factors_survive_a_file(tmp_path):
    def philips(dataset, n):
        dataset.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0x00, "DS", "0.002")

    stored = np.abs(voxels())
    write_series(tmp_path, stored, edit=philips, **(pet_tags() | {"Units": "CNTS"}))
    np.testing.assert_allclose(load_volume(tmp_path).array[::-1, ::-1], stored * 0.002, rtol=1e-6)


def test_a_header_that_counts_more_slices_than_there_are_is_a_doubt(tmp_path):
    for folder, counted in (("whole", 6), ("cut", 8)):
        write_series(tmp_path / folder, voxels(), NumberOfSlices=counted, **pet_tags())
    assert read_header(tmp_path / "whole").doubts == ()
    (doubt,) = read_header(tmp_path / "cut").doubts
    assert "6 slices are there, but NumberOfSlices is 8" in doubt
