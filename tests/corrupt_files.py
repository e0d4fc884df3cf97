"""Files broken on purpose, and what reading one did: for tests/test_robustness.py and benchmarks/robustness.py.

A seed is a folder with a sound file of one format. A mutation changes it: bits that flip, an end that is missing, a
header that lies about size, type, scale, place or the file that holds the voxels. Everything follows from a number.
"""

from __future__ import annotations

import gzip
import re
import resource
import shutil
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from io_dicom import item, new_file, save, voxels, write_series
from pydicom import Dataset, dcmread
from pydicom.uid import EnhancedMRImageStorage, RTStructureSetStorage, SegmentationStorage

from mmfusion.cohort import Case, build_index, join_labels, read_manifest
from mmfusion.errors import MmfusionError
from mmfusion.io import load_mask, load_transform, load_volume, save_transform
from mmfusion.volume import Displacement, Grid, Transform

if TYPE_CHECKING:
    from collections.abc import Callable

GRID = Grid.around((1, 2, 3), (2.0, 2.5, 3.0), (11, 13, 9))
SHAPE = (11, 13, 17)
MEMORY_LIMIT = 2 << 30
READERS = {
    **dict.fromkeys(("a.nii", "a.nii.gz", "a.hdr", "a.mha", "packed.mha", "a.mhd", "a.nrrd", "packed.nrrd"), "volume"),
    **dict.fromkeys(("a.nhdr", "classic", "enhanced.dcm", "series.zip"), "volume"),
    **dict.fromkeys(("rtstruct.dcm", "seg.dcm"), "mask"),
    **dict.fromkeys(("a.tfm", "a.h5", "field.h5", "warp.mha", "warp.nii.gz"), "transform"),
    "manifest.csv": "manifest",
    "labels.csv": "labels",
    "study": "index",
    **dict.fromkeys(("a.mgz", "packed"), "volume"),
}
"""What is read, and by which reader: the name of the seed's folder and of the file or folder in it."""

_HUGE = ("2147483647", "-5", "0", "99999999999999999999", "nan", "inf", "1e308", "-1e308", "1e-320", "", "x")
_ELSEWHERE = ("/etc/passwd", "../../../../etc/passwd", "../other/a.raw", "LIST", "%d.raw 1 2000000000 1", "/dev/zero")


def make_seeds(folder: Path) -> dict[str, Path]:
    """One sound file of each format, each in a folder of its own."""
    rng = np.random.default_rng(0)
    array = rng.integers(-900, 900, SHAPE).astype(np.int16)
    affine = np.array([[-1.5, 0.2, 0, 9], [0.3, 2, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1.0]])
    paths = {name: folder / name.replace(".", "_") / name for name in READERS}
    for path in paths.values():
        path.parent.mkdir(parents=True)
    for name in ("a.nii", "a.nii.gz", "a.hdr"):
        kind = nib.Nifti1Pair if name == "a.hdr" else nib.Nifti1Image
        image = kind(array.astype(np.float32) if name == "a.nii.gz" else array, affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, paths[name])
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing((1.5, 2.0, 3.0))
    for name in ("a.mha", "packed.mha", "a.mhd", "a.nrrd", "packed.nrrd", "a.nhdr"):
        sitk.WriteImage(image, str(paths[name]), name.startswith("packed"))
    write_series(paths["classic"], voxels((7, 5, 6)))
    write_series(paths["study"], voxels((7, 5, 6)))
    with ZipFile(paths["series.zip"], "w", ZIP_DEFLATED) as archive:
        for file in sorted(paths["classic"].iterdir()):
            archive.writestr(ZipInfo(file.name), file.read_bytes(), ZIP_DEFLATED)
    paths["packed"].mkdir()
    for file in sorted(paths["classic"].iterdir()):
        (paths["packed"] / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
    nib.save(nib.MGHImage(array, affine), paths["a.mgz"])
    save(_enhanced(voxels((7, 5, 6))), paths["enhanced.dcm"])
    save(_rtstruct(), paths["rtstruct.dcm"])
    save(_seg(), paths["seg.dcm"])
    turn = Transform.rigid((8, -5, 12), (3.0, -6.0, 4.0))
    field = Displacement(rng.uniform(-2, 2, (*GRID.shape, 3)), GRID)
    for name in ("a.tfm", "a.h5"):
        save_transform(turn, paths[name])
    save_transform(Transform(turn.matrix, field), paths["field.h5"])
    vectors = sitk.GetImageFromArray(field.array.transpose(2, 1, 0, 3).astype(np.float32), isVector=True)
    for name in ("warp.mha", "warp.nii.gz"):
        sitk.WriteImage(vectors, str(paths[name]))
    rows = "".join(f"{n:03d},,{n % 2},{n:03d}.nii,,a,7{n}.5\n" for n in range(1, 6))
    paths["manifest.csv"].write_text("subject,session,label,ct,mr,site,weight_kg\n" + rows)
    for n in range(1, 6):
        (paths["manifest.csv"].parent / f"{n:03d}.nii").write_bytes(paths["a.nii"].read_bytes())
    paths["labels.csv"].write_text("subject,label,age\n" + "".join(f"{n:03d},{n % 2},{50 + n}\n" for n in range(1, 6)))
    return paths


def _frames(dataset: Dataset, count: int, **own: Any) -> Dataset:
    dataset.NumberOfFrames = count
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelMeasuresSequence={"PixelSpacing": [1.1, 0.8], "SliceThickness": 2.5},
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence={"ImagePositionPatient": [-10, 20, 30 + 2.5 * n]}, **own) for n in range(count)
    ]
    return dataset


def _enhanced(stored: np.ndarray) -> Dataset:
    columns, rows, count = stored.shape
    dataset = new_file(EnhancedMRImageStorage, Modality="MR", SeriesInstanceUID="1.2.77", Rows=rows, Columns=columns)
    scale = {"RescaleSlope": 1, "RescaleIntercept": 0}
    _frames(dataset, count, PixelValueTransformationSequence=scale)
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = np.ascontiguousarray(stored.T).astype("<i2").tobytes()
    return dataset


def _seg() -> Dataset:
    dataset = new_file(SegmentationStorage, Modality="SEG", SeriesInstanceUID="1.2.78", Rows=8, Columns=8)
    _frames(dataset, 4, SegmentIdentificationSequence={"ReferencedSegmentNumber": 1})
    dataset.SegmentationType, dataset.SegmentSequence = "BINARY", [Dataset()]
    dataset.SegmentSequence[0].SegmentNumber, dataset.SegmentSequence[0].SegmentLabel = 1, "tumor"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 1, 1, 0, 0
    dataset.PixelData = np.random.default_rng(0).bytes(4 * 8 * 8 // 8)
    return dataset


def _rtstruct() -> Dataset:
    dataset = new_file(RTStructureSetStorage, Modality="RTSTRUCT", SeriesInstanceUID="1.2.79")
    roi, drawn = Dataset(), Dataset()
    roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = 1, "GTV", "1.2.3"
    drawn.ReferencedROINumber, drawn.ContourSequence = 1, []
    for z in np.arange(-6, 7, 3.0):
        contour = Dataset()
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 4
        contour.ContourData = [-9, -9, z, 7, -9, z, 7, 9, z, -9, 9, z]
        drawn.ContourSequence.append(contour)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [roi], [drawn]
    return dataset


def corrupt(seeds: dict[str, Path], number: int, folder: Path) -> tuple[str, str, Path]:
    """The corrupted copy with this number, in ``folder``: its seed, what was done to it, and what to read."""
    rng = np.random.default_rng([7, number])
    name = list(seeds)[number % len(seeds)]
    shutil.copytree(seeds[name].parent, folder)
    path = folder / seeds[name].name
    files = sorted(path.iterdir()) if path.is_dir() else sorted(folder.iterdir()) if name == "a.hdr" else [path]
    target = files[rng.integers(len(files))]
    ways: list[Callable[[Path, np.random.Generator], str]] = [flip, flip, cut, overwrite]
    ways += 4 * [LIES[next(ending for ending in LIES if target.name.endswith(ending))]]
    return name, ways[rng.integers(len(ways))](target, rng), path


def flip(path: Path, rng: np.random.Generator) -> str:
    """Turn a few bits over, half of the time within the first 400 bytes, where headers lie."""
    raw = bytearray(path.read_bytes())
    count = int(rng.choice([1, 2, 20]))
    for place in rng.integers(min(len(raw), 400) if rng.random() < 0.5 else len(raw), size=count):
        raw[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(raw)
    return f"{count} bits flipped"


def cut(path: Path, rng: np.random.Generator) -> str:
    """Leave the end off."""
    raw = path.read_bytes()
    kept = int(rng.integers(len(raw)))
    path.write_bytes(raw[:kept])
    return f"cut to {kept} of {len(raw)} bytes"


def overwrite(path: Path, rng: np.random.Generator) -> str:
    """Write one byte again and again over a stretch, or put a stretch in."""
    raw = path.read_bytes()
    at, length = int(rng.integers(len(raw))), int(rng.integers(1, 200))
    value = bytes([int(rng.choice([0, 255, 48, 32]))])
    inserted = bool(rng.random() < 0.3)
    path.write_bytes(raw[:at] + value * length + raw[at if inserted else at + length :])
    return f"{length} bytes of {value!r} {'inserted' if inserted else 'written'} at {at}"


def lie_nifti(path: Path, rng: np.random.Generator) -> str:
    """A field of the header with a value that it must not have, or the truth with a bomb behind it."""
    packed = path.suffix == ".gz"
    raw = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    fields = {  # offset, format, values
        "dim": (40 + 2 * int(rng.integers(5)), "<h", (-1, 0, 1, 2, 7, 32767, -32768)),
        "dims": (42, "<hhh", ((32767, 32767, 32767), (2000, 2000, 2000), (32767, 1, 1))),
        "datatype": (70, "<h", (0, 1, 2, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 1792, 2304, 999)),
        "vox_offset": (108, "<f", (0.0, -1.0, 348.0, 353.0, 1e30, float("nan"), float("inf"), 4096.0)),
        "scl_slope": (112, "<f", (0.0, float("nan"), float("inf"), -1.0, 1e38)),
        "scl_inter": (116, "<f", (float("nan"), float("inf"), 1e38)),
        "srow": (280 + 4 * int(rng.integers(12)), "<f", (float("nan"), float("inf"), 0.0, 1e38, -1e-38)),
        "pixdim": (76 + 4 * int(rng.integers(4)), "<f", (float("nan"), 0.0, -1.0, float("inf"))),
        "codes": (252, "<hh", ((0, 0), (1, 0), (-1, -1), (999, 0))),
        "sizeof_hdr": (0, "<i", (0, 540, 1543569408)),
    }
    name = str(rng.choice(list(fields)))
    at, form, values = fields[name]
    value = values[rng.integers(len(values))]
    struct.pack_into(form, raw, at, *(value if isinstance(value, tuple) else (value,)))
    if packed and rng.random() < 0.2:
        raw += bytes(50 << 20)  # packs to nothing
    path.write_bytes(gzip.compress(bytes(raw), 6, mtime=0) if packed else bytes(raw))
    return f"{name} at {at} is {value}"


def lie_mgh(path: Path, rng: np.random.Generator) -> str:
    """A number of the header with a value that it must not have."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    at = 4 * int(rng.integers(7)) if rng.random() < 0.5 else 30 + 4 * int(rng.integers(15))
    form, values = (">i", (-1, 0, 1, 2, 9, 2**31 - 1)) if at < 28 else (">f", (float("nan"), 0.0, -1.0, 1e38))
    value = values[rng.integers(len(values))]
    struct.pack_into(form, raw, at, value)
    path.write_bytes(gzip.compress(bytes(raw), mtime=0))
    return f"{form} at {at} is {value}"


def lie_text(path: Path, rng: np.random.Generator) -> str:
    """A number, word or path of a text header in place of another."""
    raw = path.read_bytes()
    end = raw.find(b"\n\n") if path.suffix in (".nrrd", ".nhdr") else raw.find(b"LOCAL")
    head = raw[: end if end > 0 else len(raw)].decode("latin1")
    lines = [n for n, line in enumerate(head.split("\n")) if re.search(r"[=:]", line)]
    rows = head.split("\n")
    n = int(rng.choice(lines)) if lines else 0
    paths = [row for row, line in enumerate(rows) if re.match("ElementDataFile|data ?file", line)]
    if rng.random() < 0.25 and path.suffix in (".mhd", ".nhdr") and paths:
        key, _, _ = re.split(r"( = |: )", rows[paths[0]], maxsplit=1)
        rows[paths[0]] = f"{key}{' = ' if path.suffix == '.mhd' else ': '}{rng.choice(_ELSEWHERE)}"
        n = paths[0]
    else:
        words = re.split(r"([ (),])", rows[n])
        numbers = [w for w, word in enumerate(words) if re.fullmatch(r"-?[\d.e+-]+", word)] or [len(words) - 1]
        words[int(rng.choice(numbers))] = str(rng.choice(_HUGE))
        rows[n] = "".join(words)
    path.write_bytes("\n".join(rows).encode("latin1") + raw[len(head) :])
    return f"header line {rows[n]!r}"


def lie_dicom(path: Path, rng: np.random.Generator) -> str:
    """The value or the length of an element is another, as pydicom's own tags find it."""
    packed = path.suffix == ".gz"
    raw = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    elements = [m.start() for m in re.finditer(rb"[\x02\x08\x18\x20\x28\x7f\x06\x30].{3}[A-Z]{2}", raw, re.S)]
    at = int(rng.choice(elements))
    if rng.random() < 0.4:
        value = int(rng.choice([0, 1, 0xFFFF, 0x7FFF, 3]))
        struct.pack_into("<H", raw, at + 6, value)
        path.write_bytes(gzip.compress(bytes(raw), mtime=0) if packed else raw)
        return f"length {value} of the element at {at}"
    for tag in rng.permutation([b"\x28\x00\x10\x00US", b"\x28\x00\x11\x00US", b"\x28\x00\x08\x00IS",
                                b"\x28\x00\x00\x01US", b"\x28\x00\x01\x01US", b"\x28\x00\x02\x00US",
                                b"\x28\x00\x30\x00DS", b"\x20\x00\x32\x00DS", b"\x20\x00\x37\x00DS",
                                b"\x28\x00\x53\x10DS", b"\x06\x30\x50\x00DS", b"\x28\x00\x02\x01US"]):  # fmt: skip
        at = raw.find(bytes(tag))
        if at > 0:
            length = struct.unpack_from("<H", raw, at + 6)[0]
            text = str(rng.choice(["nan", "inf", "-1", "0", "1e308", "9" * 12, "x"])).encode()
            wrong = bytes(rng.choice([0, 255], 2).tolist()) if bytes(tag)[4:] == b"US" else text
            raw[at + 8 : at + 8 + length] = wrong.ljust(length, b" ")[:length]
            break
    path.write_bytes(gzip.compress(bytes(raw), mtime=0) if packed else raw)
    return f"element at {at} has another value"


def lie_hdf5(path: Path, rng: np.random.Generator) -> str:
    """Bytes of the structure, not of the numbers: signatures, sizes and addresses."""
    raw = bytearray(path.read_bytes())
    for _ in range(3):
        at = int(rng.integers(min(len(raw), 2048) - 8))
        struct.pack_into("<Q", raw, at, int(rng.choice([0, 1, 2**31, 2**40, 2**62])))
    path.write_bytes(raw)
    return "addresses and sizes overwritten"


def lie_zip(path: Path, rng: np.random.Generator) -> str:
    """An entry that lies of its sizes, method, flags or place, here or in the list at the end."""
    raw = bytearray(path.read_bytes())
    entries = [m.start() for m in re.finditer(rb"PK\x01\x02|PK\x03\x04|PK\x05\x06", raw)]
    at = int(rng.choice(entries)) + int(rng.integers(4, 22))
    struct.pack_into("<I", raw, at, int(rng.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])))
    path.write_bytes(raw)
    return f"entry overwritten at {at}"


def lie_table(path: Path, rng: np.random.Generator) -> str:
    """A cell that leads elsewhere, says nothing or is not text."""
    cells = (
        "../../../etc/passwd",
        "/etc/passwd",
        "..",
        "a\0b",
        '"',
        "\udcff",
        "=1+1",
        "x" * 200_000,
        "~root",
        "//",
        "0",
    )
    rows = [line.split(",") for line in path.read_text().splitlines()]
    row = rows[rng.integers(len(rows))]
    column, cell = int(rng.integers(len(row))), cells[rng.integers(len(cells))]
    row[column] = cell
    path.write_bytes("\n".join(",".join(row) for row in rows).encode("utf-8", "surrogateescape"))
    return f"cell {column} is {cell[:30]!r}"


LIES: dict[str, Callable[[Path, np.random.Generator], str]] = {
    ".nii": lie_nifti, ".nii.gz": lie_nifti, ".hdr": lie_nifti, ".img": flip, ".mha": lie_text, ".mhd": lie_text,
    ".nrrd": lie_text, ".nhdr": lie_text, ".dcm": lie_dicom, ".tfm": lie_text, ".h5": lie_hdf5, ".csv": lie_table,
    ".zip": lie_zip, ".dcm.gz": lie_dicom, ".mgz": lie_mgh,
}  # fmt: skip


def read(reader: str, path: Path) -> Any:
    """What the product does with such a file."""
    if reader == "volume":
        return load_volume(path)
    if reader == "mask":
        return load_mask(path, GRID)
    if reader == "transform":
        return load_transform(path)
    if reader == "index":
        return build_index(path)
    if reader == "manifest":
        return [load_volume(file) for case in read_manifest(path) for file in case.images.values()]
    return join_labels([Case(f"{n:03d}") for n in range(1, 6)], path, "label")


def attempt(reader: str, path: Path) -> dict[str, Any]:
    """Read in this process, which must do no more than that: outcome, message, seconds, MiB.

    The outcome is ``read``, ``refused`` (a named error), ``unnamed`` (any other error) or ``wrong`` (another reader
    finds other voxels in the file).
    """
    before = sorted(path.parent.rglob("*"))
    held = _kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    limit = _kib("VmSize") * 1024 + 2 * MEMORY_LIMIT  # not to harm the machine; what counts is what is really held
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    start = time.perf_counter()
    outcome, message = "read", ""
    try:
        found = read(reader, path)
    except MmfusionError as error:
        outcome, message = "refused", f"{type(error).__name__}: {error}"
    except BaseException as error:
        outcome, message = "unnamed", f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    peak = (_kib("VmHWM") - held) / 1024
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if outcome == "read" and reader == "volume" and (why := disagreement(path, found.array)):
        outcome, message = "wrong", why
    if sorted(path.parent.rglob("*")) != before:
        outcome, message = "unnamed", "files were written"
    return {"outcome": outcome, "message": message[:300], "seconds": seconds, "peak_mib": peak}


def disagreement(path: Path, array: np.ndarray) -> str:
    """How the voxels differ from those that nibabel, pydicom or SimpleITK find; empty if not, or if they refuse it."""
    try:
        if path.is_dir() or path.suffix == ".dcm":
            files = [dcmread(file) for file in (path.iterdir() if path.is_dir() else [path])]
            other = np.stack([_rescaled(file) for file in files])
        elif path.name.endswith((".nii", ".gz", ".hdr", ".mgz")):
            other = nib.load(path).get_fdata()
        else:
            other = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except Exception:
        return ""
    ours, theirs = np.sort(array.ravel()), np.sort(other.astype(np.float32).ravel())
    if ours.shape != theirs.shape:
        return f"{ours.size} voxels, another reader finds {theirs.size}"
    if not np.allclose(ours, theirs, rtol=1e-5, atol=1e-3):
        return f"voxels from {ours[0]} to {ours[-1]}, another reader finds {theirs[0]} to {theirs[-1]}"
    return ""


def _rescaled(dataset: Dataset) -> np.ndarray:
    array = dataset.pixel_array.astype(float)
    for plane, group in zip(array, dataset.get("PerFrameFunctionalGroupsSequence", []), strict=False):
        dataset.update(group.PixelValueTransformationSequence[0])
        plane[...] = plane * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    if dataset.get("PerFrameFunctionalGroupsSequence"):
        return array
    return array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))


def _kib(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))
