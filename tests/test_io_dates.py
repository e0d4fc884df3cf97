"""Days between scans, by what headers say of them; and spellings of identifiers."""

import pytest
from pydicom import Dataset

from mmfusion.io.dates import scan_date
from mmfusion.io.spelling import folded, persons
from mmfusion.io.tags import lenient_dicom


@lenient_dicom()
def header(study="", acquired="", time="", **more):
    found = Dataset()
    found.StudyDate, found.AcquisitionDate, found.AcquisitionTime = study, acquired, time
    for name, value in more.items():
        setattr(found, name, value)
    return scan_date(found)


@pytest.mark.parametrize(
    ("one", "other", "days"),
    [
        (("20200101",), ("20200105",), 4),
        (("20200101", "20200103"), ("20200101", "20200105"), 2),  # one study over two days
        (("20200101", "20200103"), ("20200105", "20200103"), 4),  # one date for the acquisitions of all
        (("20200101", "20200103"), ("20200101",), 2),
        (("20200101", "20200101", "2350"), ("20200101", "20200102", "001000"), 0),  # around midnight
        (("20200101", "20200101", "2350"), ("20200101", "20200102", "130000"), 1),
        (("20200101", "20200101", "2350"), ("20200101", "20200102"), 1),
        (("", "20200103"), ("20200101",), 2),
        (("",), ("20200101", "20200103"), None),
        (("2020.01.01",), ("20200102",), 1),
        (("soon",), ("20200101",), None),
    ],
)
def test_days_between_scans(one, other, days):
    assert header(*one).days_from(header(*other)) == days == header(*other).days_from(header(*one))


def test_the_date_is_that_of_the_acquisition_else_of_the_series():
    whole = header("20200101", AcquisitionDateTime="20200309120000.5+0100", SeriesDate="20200401")
    assert whole.days_from(header("20200101", "20200309", "130000")) == 0
    assert header("20200101", SeriesDate="20200103").days_from(header("20200101")) == 2


def test_spellings_of_a_person():
    names = ["P-01", "p 1", "sub-P1", "P^1", "\uff30_001", "P\u200b1"]
    assert {folded(name) for name in names} == {"p1"}
    assert persons(names) == dict.fromkeys(names, min(names))
    others = ["1-11", "11-1", "111", "M\u00fcller", "Muller", "P10", "P101", "P1.01", "a0b", "ab", "***", ""]
    assert len({folded(name) for name in others}) == len(others)
    assert folded("Mu\u0308ller") == folded("M\u00dcLLER") and folded("P01", zeros=False) != folded("P1", zeros=False)
