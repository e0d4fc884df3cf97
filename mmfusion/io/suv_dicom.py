"""SUV from the tags of DICOM PET.

The decisions follow the vendor-neutral pseudo-code of QIBA (FDG-PET/CT SUV technical committee, "SUV vendor-neutral
pseudo-code, happy path" and "robust"), which IBSI refers to.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from mmfusion.errors import UnitsError
from mmfusion.io.pet_facts import (
    DECAY_CORRECTIONS,
    KG_PER_UNIT,
    check_dose,
    consistent_half_life,
    nuclide_of,
    refuse_without_positrons,
)
from mmfusion.io.suv import body_of, given, mean_decay, suv_per_bq
from mmfusion.io.tags import corrections, number, private
from mmfusion.io.times import (
    clock,
    date_time,
    elapsed_s,
    has_offset,
    parse_offset,
    parse_time,
    past_midnight,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydicom import Dataset

_TAG_NAMES = {
    "weight_kg": "PatientWeight (0010,1030)",
    "height_cm": "PatientSize (0010,1020)",
    "sex": "PatientSex (0010,0040)",
    "dose_mbq": "RadionuclideTotalDose (0018,1074)",
    "injection_time": "RadiopharmaceuticalStartTime (0018,1072)",
    "acquisition_time": "AcquisitionTime (0008,0032)",
    "half_life_s": "RadionuclideHalfLife (0018,1075)",
}
# The words of Units (0054,1001) by DICOM PS3.3, C.8.9.1; no other is told, since a damaged tag may hold a name.
_UNITS = (
    "CNTS", "NONE", "CM2", "CM2ML", "PCNT", "CPS", "BQML", "MGMINML", "UMOLMINML", "MLMING", "MLG", "1CM", "UMOLML",
    "PROPCNTS", "PROPCPS", "MLMINML", "MLML", "GML", "STDDEV",
)  # fmt: skip
_SUV_TYPES = ("BW", "LBM", "LBMJAMES128", "LBMJANMA", "IBW", "BSA")
_STORED = {"bw": ("BW",), "lbm": ("LBM", "LBMJANMA"), "bsa": ("BSA",)}  # SUVType (0054,1006) by kind


def suv_factor(
    header: Dataset,
    *,
    suv: str = "bw",
    first_acquisition: datetime | timedelta | None = None,
    pet: Mapping[str, Any] | None = None,
    weight_unit: str = "kg",
    source: object = "pet",
    notes: list[str] | None = None,
    doubts: list[str] | None = None,
) -> float:
    """What turns the (rescaled) values of a DICOM PET slice into SUV, g/mL (``bsa``: cm2/mL).

    Args:
        header: the tags of the slice.
        suv: ``bw``, ``lbm`` or ``bsa``.
        first_acquisition: earliest acquisition of the series; the slice's own if None. Values that were decay
            corrected to the START refer to the series time, or to this if the series time is later (then it is
            the time of a post-processing).
        pet: manifest columns (:data:`mmfusion.io.PET_DETAILS`) that override or fill in tags.
        weight_unit: what PatientWeight is in: ``kg`` as DICOM has it, ``g`` or ``lb``.
        source: what messages call the scan.
        notes, doubts: where what was done, and what may be wrong, is added.

    Raises:
        UnitsError: a tag is missing, cannot be (:mod:`mmfusion.io.pet_facts`) or contradicts the others, or the image
            is not attenuation corrected.
    """
    notes, doubts = [] if notes is None else notes, [] if doubts is None else doubts
    units = str(header.get("Units") or "").upper()
    try:
        if given(pet or {}, "half_life_s") is None:
            refuse_without_positrons(_nuclide(header))
    except ValueError as error:
        raise UnitsError(f"{source}: SUV cannot be computed, {error}") from None
    if units in ("GML", "CM2ML"):
        _refuse_other_suv(stored_suv(header), suv, source)
        if stored_suv(header) == "LBM":
            notes.append("SUVlbm as it was exported, by a formula for lean body mass that the DICOM does not name")
        return 1.0
    to_bq = 1.0
    if units == "CNTS":
        philips_suv, philips_bq = (_philips_factor(header, element, source) for element in (0x00, 0x09))
        if philips_suv and suv == "bw":
            return philips_suv
        if philips_suv and not philips_bq:
            raise UnitsError(
                f"{source}: SUV{suv} cannot be computed, values are counts (Units CNTS) and the DICOM has Philips' "
                "scale factor to SUVbw alone, (7053,1000), not that to Bq/mL, (7053,1009). Export it as BQML"
            )
        if not philips_bq:
            raise UnitsError(
                f"{source}: SUV cannot be computed, values are counts (Units CNTS) and the DICOM lacks Philips' scale "
                "factors (7053,1000) and (7053,1009). Export it as BQML or SUVbw, or use --suv none"
            )
        to_bq = philips_bq
    elif units != "BQML":
        word = units if units in _UNITS else "no word of DICOM"
        found = f"Units (0054,1001) is {word}" if units else "DICOM lacks Units (0054,1001)"
        raise UnitsError(
            f"{source}: SUV cannot be computed, {found}; BQML, GML, CM2ML or CNTS is needed. "
            "Export the scan again, or take its values as they are with --suv none"
        )
    try:
        factor, uptake = _bq_factor(header, suv, first_acquisition, dict(pet or {}), weight_unit, doubts)
    except ValueError as error:
        raise UnitsError(f"{source}: SUV cannot be computed, {error}") from None
    if units == "BQML":
        notes.append(f"Bq/mL to SUV{suv} by {factor:.4g} per Bq/mL{uptake}")
    return to_bq * factor


def _nuclide(header: Dataset) -> str:
    """The radionuclide by its code or name; empty if it is not known."""
    tracer = (header.get("RadiopharmaceuticalInformationSequence") or [{}])[0]
    code = (tracer.get("RadionuclideCodeSequence") or [{}])[0]
    texts = (code.get("CodeValue"), code.get("CodeMeaning"), tracer.get("Radiopharmaceutical"))
    return nuclide_of(*(str(text or "") for text in texts))


def own_units(header: Dataset, notes: list[str], doubts: list[str]) -> str:
    """The units of PET whose values are taken as they are: ``Bq/mL``, or ``stored`` for all others."""
    word = str(header.get("Units") or "").upper()
    notes.append(f"values as they are stored, not SUV (Units {word if word in _UNITS else 'unknown'})")
    if "ATTN" not in corrections(header):
        doubts.append(
            "CorrectedImage (0028,0051) lacks ATTN: the scan may not be corrected for attenuation. Give the corrected "
            "reconstruction"
        )
    return "Bq/mL" if word == "BQML" else "stored"


def stored_suv(header: Dataset) -> str:
    """How the values of an image that holds SUV are normalized, in DICOM's words: ``BW`` unless it says otherwise."""
    usual = "BSA" if str(header.get("Units")).upper() == "CM2ML" else "BW"
    return str(header.get("SUVType") or usual).upper()


def _refuse_other_suv(stored: str, suv: str, source: object) -> None:
    if stored in _STORED[suv]:
        return
    other = next((f"Use --suv {kind}, or export" for kind, words in _STORED.items() if stored in words), "Export")
    by = f"by {stored}" if stored in _SUV_TYPES else "in a way that SUVType (0054,1006) has no word of DICOM for"
    raise UnitsError(f"{source}: values are SUV normalized {by}, but SUV{suv} is wanted. {other} the scan as BQML")


def _philips_factor(header: Dataset, element: int, source: object) -> float:
    """A scale factor of Philips' private block; 0 if it is absent or, as Philips writes what it does not know, 0.

    Raises:
        UnitsError: it is something else than a positive number.
    """
    value = private(header, 0x7053, "Philips PET Private Group", element)
    factor = 0.0 if value in (None, "") else number(value)
    if factor is None or not 0 <= factor < float("inf"):
        raise UnitsError(
            f"{source}: SUV cannot be computed, Philips' scale factor (7053,10{element:02x}) is not a "
            "positive number. Export it as BQML or SUVbw"
        )
    return factor


def _bq_factor(
    header: Dataset,
    suv: str,
    first_acquisition: datetime | timedelta | None,
    pet: dict[str, Any],
    weight_unit: str,
    doubts: list[str],
) -> tuple[float, str]:
    """SUV per Bq/mL, and the uptake time as the end of a sentence.

    Raises:
        ValueError: it cannot be computed, and why.
    """
    corrected = corrections(header)
    decay = str(header.get("DecayCorrection") or "").upper()
    if "ATTN" not in corrected:
        raise ValueError(
            "CorrectedImage (0028,0051) lacks ATTN: the scan is not corrected for attenuation. Give the corrected "
            "reconstruction"
        )
    if decay not in DECAY_CORRECTIONS or ("DECY" in corrected) != (decay != "NONE"):
        word = f"'{decay}'" if decay in ("", *DECAY_CORRECTIONS) else "no word of DICOM"
        raise ValueError(
            f"DecayCorrection (0054,1102) is {word} and CorrectedImage (0028,0051) "
            f"{'has' if 'DECY' in corrected else 'lacks'} DECY; it cannot be known to which time the values refer. "
            "Export the scan again"
        )
    tracer = (header.get("RadiopharmaceuticalInformationSequence") or [{}])[0]
    dose_bq, height_m = number(tracer.get("RadionuclideTotalDose")), number(header.get("PatientSize"))
    weight = number(header.get("PatientWeight"))
    tags = {
        "weight_kg": weight and weight * KG_PER_UNIT[weight_unit], "sex": header.get("PatientSex"),
        "height_cm": height_m and height_m * 100,
    }  # fmt: skip
    body = body_of(pet, tags, suv)
    half_life = given(pet, "half_life_s") or consistent_half_life(
        _nuclide(header), number(tracer.get("RadionuclideHalfLife")), _TAG_NAMES["half_life_s"]
    )
    dose, own_dose = (dose_bq or 0.0) / 1e6, given(pet, "dose_mbq")
    missing = [name for name, value in body.items() if not value]
    missing += [name for name, value in (("dose_mbq", own_dose or dose), ("half_life_s", half_life or 0)) if value <= 0]
    scan: datetime | timedelta | None = None
    injections: list[datetime | timedelta | None] = []
    if decay != "ADMIN":
        scan, injections = _times(header, tracer, decay, first_acquisition, pet)
        missing += ["acquisition_time"] if scan is None else []
        missing += ["injection_time"] if all(one is None for one in injections) else []
    if missing or not half_life:
        raise ValueError(
            f"DICOM lacks {', '.join(_TAG_NAMES[name] for name in missing)}. Give {', '.join(missing)} in the manifest"
        )
    doses = [one.get("RadionuclideTotalDose") for one in header.get("RadiopharmaceuticalInformationSequence") or []]
    if not own_dose and (count := sum(number(one) is not None for one in doses)) > 1:
        doubts.append(
            f"the header has {count} injections (RadiopharmaceuticalInformationSequence), and the first is used. Check "
            "it, or give dose_mbq and injection_time in the manifest"
        )
    check_dose(own_dose or dose, "dose_mbq" if own_dose else _TAG_NAMES["dose_mbq"])
    elapsed = 0.0 if scan is None else elapsed_s(injections, scan, half_life, doubts)
    factor = suv_per_bq(body, suv, own_dose or dose, half_life, elapsed)
    if decay == "NONE":  # the measured mean over the frame, brought back to the frame's start
        duration_ms = number(header.get("ActualFrameDuration"))
        if not duration_ms or duration_ms < 0:
            raise ValueError(
                "DICOM lacks ActualFrameDuration (0018,1242), over which values that are not decay corrected are a "
                "mean. Export the scan again"
            )
        factor *= mean_decay(duration_ms / 1e3, half_life)
    return factor, "" if scan is None else f", {elapsed / 3600:.1f} h after the injection"


def _times(
    header: Dataset, tracer: Any, decay: str, first_acquisition: datetime | timedelta | None, pet: Mapping[str, Any]
) -> tuple[datetime | timedelta | None, list[datetime | timedelta | None]]:
    """The time that the values refer to, and that of the injection by each tag that says it."""
    own = _acquired(header)
    if decay == "NONE" and own is not None and first_acquisition is not None and type(own) is type(first_acquisition):
        own = past_midnight([first_acquisition, own])[1]
    scan = own if decay == "NONE" else _reference_time(header, first_acquisition or own)
    given_scan, injection = parse_time(pet.get("acquisition_time")), parse_time(pet.get("injection_time"))
    injections = [injection]
    if injection is None:
        injections = [
            _moment(header, tracer.get("RadiopharmaceuticalStartDateTime"), "RadiopharmaceuticalStartDateTime"),
            _moment(header, tracer.get("RadiopharmaceuticalStartTime"), "RadiopharmaceuticalStartTime"),
        ]
    return scan if given_scan is None else given_scan, injections


def _acquired(header: Dataset) -> datetime | timedelta | None:
    """When the slice was acquired; a time with an offset that the others lack counts if there is no other."""
    full = _moment(header, header.get("AcquisitionDateTime"), "AcquisitionDateTime")
    if full is not None and not has_offset(full):
        return full
    day = header.get("AcquisitionDate") or header.get("SeriesDate")
    parts = _moment(header, date_time(day, header.get("AcquisitionTime")), "AcquisitionTime")
    return full if parts is None else parts


def _moment(header: Dataset, value: Any, tag: str) -> datetime | timedelta | None:
    """A time of a header on its local clock; it keeps an offset from UTC only if the header does not say its own.

    Raises:
        ValueError: it is no time. The value is not told: that of a damaged tag may be any other, such as a name.
    """
    try:
        when = parse_time(value)
    except ValueError:
        raise ValueError(f"{tag} is not a time. Give injection_time and acquisition_time in the manifest") from None
    try:
        zone = parse_offset(header.get("TimezoneOffsetFromUTC"))
    except ValueError:
        raise ValueError("TimezoneOffsetFromUTC (0008,0201) is not an offset from UTC. Export the scan again") from None
    if isinstance(when, datetime) and when.tzinfo and zone:
        return when.astimezone(zone).replace(tzinfo=None)
    return when


def earliest_acquisition(headers: Iterable[Dataset], notes: list[str] | None = None) -> datetime | timedelta | None:
    """When the first of a series' slices was acquired; None if no header says it."""
    try:
        times = [time for time in map(_acquired, headers) if time is not None]
    except ValueError:
        return None  # suv_factor names the broken tag, if it matters
    # with dates on some slices only, clock times cannot be compared with them
    dated = [time for time in times if isinstance(time, datetime)]
    dated = [time for time in dated if not has_offset(time)] or dated  # nor those without an offset with the others
    if not dated:
        return min(past_midnight([time for time in times if isinstance(time, timedelta)]), default=None)
    in_order = past_midnight(dated)
    if in_order != dated and notes is not None:
        notes.append("slices from both sides of midnight have one date; those after it are taken as of the next day")
    return min(in_order)


def _reference_time(header: Dataset, acquired: datetime | timedelta | None) -> datetime | timedelta | None:
    """The time that START-corrected values refer to."""
    series = _moment(header, date_time(header.get("SeriesDate"), header.get("SeriesTime")), "SeriesTime")
    if isinstance(series, datetime) and isinstance(acquired, datetime) and not has_offset(acquired):
        late = series > acquired
    else:
        late = series is not None and acquired is not None and clock(series) > clock(acquired)
    if series is not None and not late:
        return series
    return _moment(header, private(header, 0x0009, "GEMS_PETD_01", 0x0D), "GE's (0009,100d)") or acquired
