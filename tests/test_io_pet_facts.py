"""What cannot be of a PET scan: weights, doses, radionuclides and times, each by a header that says it."""

import numpy as np
import pytest
from io_dicom import new_file, pet_tags, voxels, write_series
from io_dicom import pet_header as header

from mmfusion.errors import UnitsError
from mmfusion.io import load_volume, read_header, suv_factor
from mmfusion.io.pet_facts import nuclide_of

ONE_HOUR = 70e3 / (350e6 / 2)  # 70 kg, 350 MBq, one half-life later


@pytest.mark.parametrize(
    ("tags", "tracer", "message"),
    [
        ({"PatientWeight": 68000}, {}, r"weight of 68000 kg cannot be\. If it is in grams, use --weight-unit g"),
        ({"PatientWeight": 6800}, {}, "weight of 6800 kg cannot be"),
        ({"PatientWeight": 0.068}, {}, r"weight of 0\.068 kg cannot be\. Give weight_kg in the manifest"),
        *[
            ({}, {"RadionuclideTotalDose": dose}, r"\(0018,1074\) is .* MBq; 1 to 10000 MBq is .*give dose_mbq")
            for dose in (0.35, 350, 3.5e5, 3.5e11)  # GBq, MBq and kBq, and a thousand times too much
        ],
    ],
)  # fmt: skip
def test_weights_and_doses_that_cannot_be(tags, tracer, message):
    with pytest.raises(UnitsError, match=f"SUV cannot be computed, .*{message}"):
        suv_factor(header(tracer=tracer, **tags))
    with pytest.raises(UnitsError, match="SUV cannot be computed, (a body weight of 68000 kg|dose_mbq is 0.35 MBq)"):
        suv_factor(header(), pet={"weight_kg": "68000"} if tags else {"dose_mbq": "0.35"})


def test_a_weight_in_another_unit():
    for weight, unit in ((70_000, "g"), (70 / 0.45359237, "lb"), (70, "kg")):
        assert suv_factor(header(PatientWeight=round(weight, 6)), weight_unit=unit) == pytest.approx(ONE_HOUR)
    assert suv_factor(header(), weight_unit="g", pet={"weight_kg": 70}) == pytest.approx(ONE_HOUR)  # a column is in kg


def nuclide(value="", meaning="", **tracer):
    code = new_file(CodeValue=value, CodeMeaning=meaning)
    return {"RadionuclideCodeSequence": [code]} | tracer


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (("C-111A1", ""), "F18"), (("77004003", "whatever"), "F18"), (("", "^18^Fluorine"), "F18"),
        (("", "F^18^[^18^Fluorine]"), "F18"), (("18F",), "F18"), (("fluorine-18",), "F18"), (("FDG -- x",), "F18"),
        (("18F-PSMA-1007",), "F18"), (("68Ga-PSMA-11",), "Ga68"), (("[11C]PiB",), "C11"), (("C-131A3",), "Ga68"),
        (("Tc-99m sestamibi",), "Tc99m"), (("99mTc",), "Tc99m"),
        (("tc99M",), "Tc99m"), (("f18",), "F18"), (("18f",), "F18"), (("^131^Iodine",), "I131"), (("I-124",), "I124"),
        (("Lu177 and Ga68",), ""), (("Solution",), ""), (("PSMA-11",), ""), (("Doe^F Anna 18 ",), ""), (("118Fx",), ""),
    ],
)  # fmt: skip
def test_radionuclides_in_many_writings(texts, name):
    assert nuclide_of(*texts) == name


def test_a_half_life_that_is_not_the_nuclides():
    assert suv_factor(header(tracer=nuclide("C-111A1", RadionuclideHalfLife=6588))) > 0
    for wrong in (109.77, 1221.84, 7200):  # minutes; of another nuclide; off
        with pytest.raises(UnitsError, match=r"HalfLife \(0018,1075\) .* s is not that of the radionuclide F18 \(6586"):
            suv_factor(header(tracer=nuclide("C-111A1", RadionuclideHalfLife=wrong)))
    told = suv_factor(header(tracer=nuclide("C-111A1", RadionuclideHalfLife=109.77)), pet={"half_life_s": 3600})
    assert told == pytest.approx(ONE_HOUR)
    assert suv_factor(header(Units="GML", tracer=nuclide("C-111A1", RadionuclideHalfLife=109.77))) == 1  # not needed
    found = header(tracer=nuclide("", "^11^Carbon", RadionuclideHalfLife=None))  # the name suffices
    assert suv_factor(found) == pytest.approx(70e3 / 350e6 * 2 ** (3600 / 1221.84))


@pytest.mark.parametrize("units", ["BQML", "GML"])
def test_what_emits_no_positrons_is_no_pet(units):
    found = header(Units=units, tracer=nuclide("C-163A8", "^99m^Technetium", RadionuclideHalfLife=21624))
    with pytest.raises(UnitsError, match=r"radionuclide is Tc99m, which emits no positrons.* values as they are with"):
        suv_factor(found)


@pytest.mark.parametrize("injected", ["20200102163000", "20200103003000", "20200101120000"])
def test_an_injection_whose_date_agrees_must_lie_before_the_scan(injected):
    """After the scan on its day and on the next (one of the two in UTC), and 22 half-lives before it."""
    tracer = {"RadiopharmaceuticalStartDateTime": injected, "RadiopharmaceuticalStartTime": injected[8:]}
    with pytest.raises(UnitsError, match=r"injection lies (6\.5 h after|14\.5 h after|22\.0 h before) the scan.*dates"):
        suv_factor(header(tracer=tracer))


def test_a_date_and_a_clock_that_contradict_each_other_are_a_doubt():
    doubts = []
    found = header(tracer={"RadiopharmaceuticalStartDateTime": "20200102163000"})  # and 09:00 without a date
    assert suv_factor(found, doubts=doubts) == pytest.approx(ONE_HOUR)
    assert len(doubts) == 1 and "the injection lies 6.5 h after the scan; the time without the date" in doubts[0]


def test_a_long_uptake_by_the_clock_alone_is_a_doubt(tmp_path):
    tracer = {"RadiopharmaceuticalStartTime": "030000"}
    write_series(tmp_path, np.abs(voxels()), **pet_tags(**tracer))
    found = read_header(tmp_path)
    assert found.doubts == (
        "the injection lies 7.0 h before the scan, 7.0 half-lives of the tracer (3600 s), by the clock alone. "
        "Check both times, or give injection_time and acquisition_time in the manifest, with dates",
    )
    assert found.notes == ("Bq/mL to SUVbw by 0.0256 per Bq/mL, 7.0 h after the injection",)
    assert read_header(tmp_path, pet={"injection_time": "09:00"}).doubts == ()


def test_a_dynamic_scan_may_begin_just_before_the_injection():
    for start in ({"RadiopharmaceuticalStartTime": "100200"}, {"RadiopharmaceuticalStartDateTime": "20200102100200"}):
        assert suv_factor(header(tracer=start)) == pytest.approx(70e3 / 350e6 * 2 ** (-120 / 3600))


def test_beds_on_both_sides_of_midnight_under_one_date(tmp_path):
    """A whole-body scan from 23:50 to 00:05, injected at 22:50, whose date was not changed at midnight."""
    clocks = ("235000", "235500", "235900", "000100", "000300", "000500")
    stored = np.abs(voxels())
    for decay, corrected in (("START", ["DECY", "ATTN"]), ("NONE", ["ATTN"])):
        tags = pet_tags(RadiopharmaceuticalStartTime="225000") | {
            "SeriesTime": "235000", "DecayCorrection": decay, "CorrectedImage": corrected, "ActualFrameDuration": 1,
        }  # fmt: skip
        folder = tmp_path / decay
        write_series(folder, stored, edit=lambda d, n: setattr(d, "AcquisitionTime", clocks[n]), **tags)
        elapsed = 3600.0 + (np.array([0, 5, 9, 11, 13, 15]) * 60 if decay == "NONE" else np.zeros(6))
        volume = load_volume(folder)
        np.testing.assert_allclose(volume.array[::-1, ::-1], stored * 70e3 / 350e6 * 2 ** (elapsed / 3600), rtol=1e-5)
        assert volume.meta["notes"][0].startswith("slices from both sides of midnight have one date")


def test_a_half_life_in_minutes_is_refused_where_no_name_says_so():
    with pytest.raises(UnitsError, match=r"more than 6 half-lives \(of 109\.77 s\) before it\. Correct the times or"):
        suv_factor(header(tracer={"RadionuclideHalfLife": 109.77}))


@pytest.mark.parametrize("change", [{"PatientWeight": 77}, {"Units": "GML"}])
def test_slices_that_say_different_things_are_a_doubt(tmp_path, change):
    def edit(dataset, n):
        for name, value in change.items() if n > 2 else ():
            setattr(dataset, name, value)

    write_series(tmp_path, np.abs(voxels()), edit=edit, **pet_tags())
    [doubt] = read_header(tmp_path).doubts
    assert "of its slices differ by up to" in doubt and ("10%" in doubt) == ("PatientWeight" in change)
