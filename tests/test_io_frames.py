"""Dynamic DICOM series: frames told apart by a tag, one of them (or their mean) chosen by name."""

import numpy as np
import pytest
from io_dicom import pet_tags, voxels, write_enhanced, write_series
from small_scans import write_study

from mmfusion.cohort import check_manifest
from mmfusion.errors import OptionError, ReadError
from mmfusion.io import load_volume, read_header
from mmfusion.prepare import prepare_cohort

FRAMES = [voxels((7, 5, 6), seed) for seed in (3, 4, 5)]


def write_dynamic(folder, tag, values, frames=FRAMES, **tags):
    """One series of all frames, each slice of a frame with its value of the tag (or the tags of a dict)."""
    for n, (stored, value) in enumerate(zip(frames, values, strict=True)):
        own = value if tag is None else {tag: value}
        write_series(folder / str(n), stored, **({"series_uid": "1.2.3", "Modality": "MR"} | tags | own))
        for path in (folder / str(n)).iterdir():
            path.rename(folder / f"{-n % len(frames)}_{path.name}")
        (folder / str(n)).rmdir()


def turned(stored):
    """Stored ``[column, row, slice]`` (axes L, P, S) as nearest RAS."""
    return stored[::-1, ::-1]


@pytest.mark.parametrize(
    ("tag", "values", "told"),
    [
        ("TemporalPositionIdentifier", (2, 10, 9), "TemporalPositionIdentifier 2, 9, 10"),
        ("FrameReferenceTime", (5000.5, 600000, 20000), "FrameReferenceTime 5000.5, 20000.0, 600000.0 ms"),
        ("AcquisitionTime", ("100000", "103000.5", "101000"), "AcquisitionTime 0, 600, 1800.5 s after the first"),
        ("TriggerTime", (0, 200, 100), "TriggerTime 0.0, 100.0, 200.0 ms"),
        ("EchoTime", (4.6, 120, 60), "EchoTime 4.6, 60.0, 120.0 ms"),
        ("DiffusionBValue", (0, 1000, 500), "DiffusionBValue 0.0, 500.0, 1000.0 s/mm2"),
        ("AcquisitionNumber", (1, 3, 2), "AcquisitionNumber 1, 2, 3"),
        ("ContentTime", ("100000", "103000.5", "101000"), "ContentTime 0, 600, 1800.5 s after the first"),
    ],
)
def test_frames_are_told_apart_by_a_tag_and_one_is_chosen(tmp_path, tag, values, told):
    write_dynamic(tmp_path, tag, values)
    with pytest.raises(ReadError) as refused:
        read_header(tmp_path)
    assert f"{tmp_path} has {told}: 3 frames; one static frame is needed. Choose with --frame" in str(refused.value)
    for frame, stored in {"first": FRAMES[0], "last": FRAMES[1], "1": FRAMES[2], 2: FRAMES[1]}.items():
        np.testing.assert_array_equal(load_volume(tmp_path, frame=frame).array, turned(stored))
    np.testing.assert_allclose(
        load_volume(tmp_path, frame="mean").array, turned(np.mean(FRAMES, axis=0)), rtol=1e-5, atol=1e-3
    )
    header = read_header(tmp_path, frame="last")
    assert header.frames == 3 and header.shape == (7, 5, 6)
    value = told.split(", ")[-1]
    assert header.notes == (f"3 frames: frame 2 ({tag} {value}) is used",)
    assert read_header(tmp_path, frame="mean").notes == ("3 frames: their mean is used, unweighted",)


def test_a_frame_that_does_not_exist_is_named(tmp_path):
    write_dynamic(tmp_path, "EchoTime", (4, 5, 6))
    with pytest.raises(ReadError, match="has 3 frames, numbered from 0; frame 3 does not exist"):
        read_header(tmp_path, frame=3)
    with pytest.raises(OptionError, match="frame is first, last, mean, a number from 0, .*, found 'middle'"):
        read_header(tmp_path, frame="middle")


def test_what_is_no_choice_of_frames_is_refused_whatever_the_scans_are(tmp_path):
    manifest = write_study(tmp_path, subjects=1)
    for work in (check_manifest, lambda path, **options: prepare_cohort(path, tmp_path / "c", **options)):
        with pytest.raises(OptionError, match="numbers as 20-24, .*, found '20:24'"):
            work(manifest, frame="20:24")
    assert not (tmp_path / "c").exists()


def test_many_frames_are_listed_in_short(tmp_path):
    write_dynamic(tmp_path, "TriggerTime", range(0, 80, 10), [voxels((4, 3, 2), n) for n in range(8)])
    with pytest.raises(ReadError, match=r"has TriggerTime 0\.0, 10\.0, 20\.0, \.\.\., 70\.0 ms: 8 frames"):
        read_header(tmp_path)


def test_times_on_both_sides_of_midnight_are_in_order(tmp_path):
    night = [
        {"AcquisitionDate": "20200103", "AcquisitionTime": "000500"},
        {"AcquisitionDate": "20200102", "AcquisitionTime": "235500"},
    ]
    write_dynamic(tmp_path, None, night, FRAMES[:2])
    assert read_header(tmp_path, frame="last").notes == (
        "2 frames: frame 1 (AcquisitionTime 600 s after the first) is used",
    )


def test_times_without_a_date_on_both_sides_of_midnight_are_in_order(tmp_path):
    write_dynamic(tmp_path, "AcquisitionTime", ("000500", "235500"), FRAMES[:2])
    assert read_header(tmp_path, frame="last").notes == (
        "2 frames: frame 1 (AcquisitionTime 600 s after the first, past midnight) is used",
    )
    np.testing.assert_array_equal(load_volume(tmp_path, frame="last").array, turned(FRAMES[0]))


def test_no_date_of_a_frame_is_told(tmp_path):
    write_dynamic(tmp_path, "AcquisitionDateTime", ("20240102090000", "20240102091000"), FRAMES[:2])
    with pytest.raises(ReadError) as refused:
        read_header(tmp_path)
    assert "has AcquisitionDateTime 0, 600 s after the first: 2 frames" in str(refused.value)
    assert "2024" not in str(refused.value).replace(str(tmp_path), "")


def test_frames_that_lack_slices_are_counted(tmp_path):
    write_dynamic(tmp_path, "FrameReferenceTime", (1000, 2000, 3000))
    for name in ("0_000_0.dcm", "0_005_1.dcm"):
        (tmp_path / name).unlink()
    with pytest.raises(ReadError) as refused:
        read_header(tmp_path, frame="last")
    assert ("1 of 3 frames lack slices, the first is frame 0 (FrameReferenceTime 1000.0 ms) with 4 of 6. Copy") in str(
        refused.value
    )


def test_what_no_standard_tag_tells_apart_is_refused(tmp_path):
    def private(dataset, n):
        dataset.private_block(0x0019, "MAKER", create=True).add_new(0x0C, "IS", n)

    write_dynamic(tmp_path, "EchoTime", (4, 4, 4), edit=private)
    with pytest.raises(ReadError, match="18 slices at 6 positions.*no tag tells them apart"):
        read_header(tmp_path, frame="first")


def each(tag, values):
    """For :func:`write_dynamic`: the value of every slice, ``values [frame][slice]``."""

    def edit(row):
        return lambda dataset, n: setattr(dataset, tag, row[n])

    return [{"edit": edit(row)} for row in values]


def clocks(seconds):
    return [[f"10{second // 60:02d}{second % 60:02d}" for second in row] for row in seconds]


F, N = np.mgrid[:3, :6]  # frame and slice


@pytest.mark.parametrize(
    ("tag", "values", "told"),
    [
        ("InstanceNumber", (6 * F + N + 1).tolist(), "InstanceNumber 1-6, 7-12, 13-18:"),
        ("InstanceNumber", (6 * F + 6 - N).tolist(), "InstanceNumber 1-6, 7-12, 13-18:"),
        ("InstanceNumber", (3 * N + F + 1).tolist(), "InstanceNumber 1-16, 2-17, 3-18:"),
        ("AcquisitionTime", clocks(30 * F + N // 2), "AcquisitionTime 0-2, 30-32, 60-62 s after"),
        ("ContentTime", clocks(30 * F + 5 * (N % 2)), "ContentTime 0-5, 30-35, 60-65 s after"),
    ],
)
def test_the_order_of_slices_tells_frames_apart(tmp_path, tag, values, told):
    write_dynamic(tmp_path, None, each(tag, values))
    with pytest.raises(ReadError, match=f"has {told}"):
        read_header(tmp_path)
    for frame, stored in enumerate(FRAMES):
        np.testing.assert_array_equal(load_volume(tmp_path, frame=frame).array, turned(stored))


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("InstanceNumber", (12 * F + np.where(N == 5, 13, N)).tolist()),  # ends after the next one begins
        ("InstanceNumber", (2 * N + F // 2).tolist()),  # twice at one position
        ("ContentTime", clocks(30 * (F > 0) + N)),  # two of the three frames at one time
        ("ContentTime", clocks(5 * F + N)),  # the last slice when the next frame begins
    ],
)
def test_an_order_that_leaves_a_doubt_tells_nothing(tmp_path, tag, values):
    write_dynamic(tmp_path, None, each(tag, values))
    with pytest.raises(ReadError, match="no tag tells them apart"):
        read_header(tmp_path, frame="first")


@pytest.mark.parametrize("tag", ["AcquisitionDateTime", "ContentTime", "InstanceNumber"])
def test_several_multiframe_objects_of_one_series_are_frames(tmp_path, tag):
    value = {
        "AcquisitionDateTime": "202001021{}0000".format,
        "ContentTime": "1{}0000".format,
        "InstanceNumber": lambda n: n + 1,
    }[tag]
    for n, stored in enumerate(FRAMES):
        write_enhanced(tmp_path, stored, range(6), [{}] * 6, name=f"{-n % 3}.dcm", **{tag: value(n)})
    with pytest.raises(ReadError, match=f"has {tag} .*: 3 frames"):
        read_header(tmp_path)
    for n, stored in enumerate(FRAMES):
        np.testing.assert_array_equal(load_volume(tmp_path, frame=n).array, turned(stored))


@pytest.mark.parametrize(
    ("macro", "tag", "values", "told"),
    [
        ("FrameContentSequence", "TemporalPositionIndex", (1, 2), "TemporalPositionIndex 1, 2"),
        ("TemporalPositionSequence", "TemporalPositionTimeOffset", (0.0, 30.5), "TemporalPositionTimeOffset 0.0, 30.5"),
        ("MREchoSequence", "EffectiveEchoTime", (4.5, 9.0), "EffectiveEchoTime 4.5, 9.0 ms"),
        ("MRDiffusionSequence", "DiffusionBValue", (0.0, 800.0), "DiffusionBValue 0.0, 800.0 s/mm2"),
    ],
)  # fmt: skip
def test_frames_of_a_multiframe_object(tmp_path, macro, tag, values, told):
    stored = np.concatenate(FRAMES[:2], axis=2)
    groups = [{macro: {tag: value}} for value in values for _ in range(6)]
    write_enhanced(tmp_path, stored, [*range(6)] * 2, groups)
    with pytest.raises(ReadError, match=f"has {told}.*: 2 frames"):
        read_header(tmp_path)
    np.testing.assert_array_equal(load_volume(tmp_path, frame="first").array, turned(FRAMES[0]))
    np.testing.assert_array_equal(load_volume(tmp_path, frame="last").array, turned(FRAMES[1]))


def test_frames_corrected_to_the_start_share_one_factor(tmp_path):
    times = [{"AcquisitionTime": clock} for clock in ("100000", "101000", "102000")]
    frames = [np.abs(stored) for stored in FRAMES]
    write_dynamic(tmp_path, None, times, frames, **(pet_tags() | {"SeriesTime": "153000"}))
    factor = 70e3 / (350e6 / 2)  # 70 kg, 350 MBq, one half-life from injection to the first slice of the series
    for n, stored in enumerate(frames):
        np.testing.assert_allclose(load_volume(tmp_path, frame=n).array, turned(stored) * factor, rtol=1e-6)


def test_frames_without_decay_correction_are_corrected_one_by_one(tmp_path):
    times = [{"AcquisitionTime": clock} for clock in ("100000", "110000", "120000")]
    frames = [np.abs(stored) for stored in FRAMES]
    uncorrected = {"DecayCorrection": "NONE", "CorrectedImage": ["ATTN"], "ActualFrameDuration": 1}  # ms
    write_dynamic(tmp_path, None, times, frames, **(pet_tags() | uncorrected))
    suv = [turned(stored) * 70e3 / (350e6 / 2**hours) for hours, stored in enumerate(frames, 1)]
    np.testing.assert_allclose(load_volume(tmp_path, frame="last").array, suv[2], rtol=1e-6)
    np.testing.assert_allclose(load_volume(tmp_path, frame="mean").array, np.mean(suv, axis=0), rtol=1e-5)


def test_the_mean_is_weighted_by_duration_and_windows_are_of_time(tmp_path):
    frames, times = [np.abs(stored) for stored in FRAMES], ("235500", "000000", "001000")  # across midnight, one date
    own = [{"AcquisitionTime": at, "ActualFrameDuration": ms} for at, ms in zip(times, (3e5, 6e5, 12e5), strict=True)]
    write_dynamic(tmp_path, None, own, frames, Modality="MR", AcquisitionDate="20200102")
    for frame, used in {"mean": (0, 1, 2), "0-1": (0, 1), "5min-35min": (1, 2), "0s-300s": (0,), "1-1": (1,)}.items():
        weights = np.array([300, 600, 1200])[list(used)]
        expected = np.average([frames[n] for n in used], axis=0, weights=weights)
        np.testing.assert_allclose(load_volume(tmp_path, frame=frame).array, turned(expected), rtol=1e-5)
    assert read_header(tmp_path, frame="5-35min").notes == (
        "3 frames: the mean of 1 to 2 (5-35min) is used, weighted by duration",
    )
    for frame, message in {
        "1min-9min": "no frame lies wholly between 60 and 540 s after .*; the 3 frames end after 2100 s",
        "1-3": "has 3 frames, numbered from 0; frame 3 does not exist",
    }.items():
        with pytest.raises(ReadError, match=message):
            read_header(tmp_path, frame=frame)
    for frame in ("2-1", "9min-1min"):
        with pytest.raises(OptionError, match=f"frame {frame} ends before it begins"):
            read_header(tmp_path, frame=frame)


def test_frames_of_one_time_of_acquisition_are_timed_by_their_middle(tmp_path):
    own = [{"FrameReferenceTime": middle, "ActualFrameDuration": 6e5} for middle in (3e5, 9e5, 15e5)]
    write_dynamic(tmp_path, None, own, AcquisitionTime="100000")
    expected = np.mean(FRAMES[1:], axis=0)
    volume = load_volume(tmp_path, frame="10min-30min")
    np.testing.assert_allclose(volume.array, turned(expected), rtol=1e-5, atol=1e-3)
    assert volume.meta["notes"] == ["3 frames: the mean of 1 to 2 (10min-30min) is used"]


def test_frames_of_a_multiframe_object_are_weighted_by_their_own_durations(tmp_path):
    groups = [
        {"FrameContentSequence": {"TemporalPositionIndex": n + 1, "FrameAcquisitionDuration": ms}}
        for n, ms in enumerate((1000.0, 3000.0))
        for _ in range(6)
    ]
    write_enhanced(tmp_path, np.concatenate(FRAMES[:2], axis=2), [*range(6)] * 2, groups)
    expected = np.average(FRAMES[:2], axis=0, weights=(1, 3))
    np.testing.assert_allclose(load_volume(tmp_path, frame="mean").array, turned(expected), rtol=1e-5, atol=1e-3)


def test_frames_at_different_places_have_no_mean(tmp_path):
    def aside(dataset, n):
        if dataset.EchoTime == 5:
            dataset.ImagePositionPatient[0] += 3

    write_dynamic(tmp_path, "EchoTime", (4, 5), FRAMES[:2], edit=aside)
    assert read_header(tmp_path, frame="last").frames == 2
    with pytest.raises(ReadError, match="the frames do not lie at one place, so they have no mean"):
        read_header(tmp_path, frame="mean")
