"""Masks: drawn shapes of known volume, label files and DICOM SEG come onto the grid that asks."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from io_dicom import new_file, save, write_series
from pydicom import Dataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import RTStructureSetStorage, SegmentationStorage

from mmfusion.errors import OrientationError, ReadError, VoxelError
from mmfusion.io import load_mask
from mmfusion.volume import Grid, Transform

GRID = Grid.around((10, -20, 30), (1.1, 0.9, 2.5), (47, 51, 33))
FLIP = np.array([-1.0, -1, 1])
CENTER = np.array([10.0, -20, 30])


def circle(radius, height, center=CENTER, points=90):
    """A contour [N, 3] in an axial plane, RAS mm."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack(
        [center[0] + radius * np.cos(angle), center[1] + radius * np.sin(angle), np.full(points, height)], -1
    )


def sphere(radius=15.0, step=30 / 23, center=CENTER):
    heights = center[2] + np.arange(-radius + step / 2, radius, step)
    return [circle(np.sqrt(radius**2 - (z - center[2]) ** 2), z, center) for z in heights]


def write_rtstruct(path, structures, kind="CLOSED_PLANAR"):
    dataset = new_file(RTStructureSetStorage, Modality="RTSTRUCT", SeriesInstanceUID="1.2.840.6")
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), 1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, "1.2.3"
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.4f}" for value in (points * FLIP).ravel()]
            drawn.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    return save(dataset, path)


def milliliters(mask):
    return mask.array.astype(float).sum() * abs(np.linalg.det(mask.affine[:3, :3])) / 1000


def test_a_drawn_sphere_has_its_volume_and_its_middle(tmp_path):
    grid = Grid.around(CENTER, (1.1, 0.9, 0.47), (31, 39, 71))
    mask = load_mask(write_rtstruct(tmp_path / "rs.dcm", {"GTV": sphere()}), grid)
    assert milliliters(mask) == pytest.approx(4 / 3 * np.pi * 1.5**3, rel=0.01)
    np.testing.assert_allclose(grid.to_world(np.argwhere(mask.array)).mean(0), CENTER, atol=0.1)
    assert (mask.units, mask.array.dtype, mask.frame_of_reference, mask.meta["rois"]) == (
        "label",
        np.uint8,
        "1.2.3",
        ["GTV"],
    )
    assert mask.grid.same_as(grid) and mask.meta["notes"] == []


def test_every_voxel_center_is_tested_exactly(tmp_path):
    """Against the analytic inside of a box and of its slabs, on an oblique grid."""
    corners = np.array([[0, -30], [20, -30], [20, -10], [0, -10]])
    box = [np.column_stack([corners, np.full(4, z)]) for z in np.arange(20, 41, 4.0)]
    turn = Transform.rigid((12, -25, 31), center=CENTER).matrix
    grid = Grid(GRID.shape, turn @ GRID.affine)
    mask = load_mask(write_rtstruct(tmp_path / "rs.dcm", {"box": box}), grid)
    x, y, z = np.moveaxis(grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)), -1, 0)
    expected = (x > 0) & (x < 20) & (y > -30) & (y < -10) & (z > 18) & (z < 42)
    np.testing.assert_array_equal(mask.array > 0, expected)
    assert expected.sum() > 3000


def test_contours_in_oblique_planes(tmp_path):
    turn = Transform.rigid((40, 25, -15), center=CENTER)
    mask = load_mask(write_rtstruct(tmp_path / "rs.dcm", {"GTV": [turn.apply(c) for c in sphere()]}), GRID)
    assert milliliters(mask) == pytest.approx(4 / 3 * np.pi * 1.5**3, rel=0.01)


def test_a_contour_within_a_contour_is_a_hole(tmp_path):
    heights = CENTER[2] + np.arange(-10, 10.1, 2.5)
    ring = [circle(radius, z) for z in heights for radius in (15, 8)]
    mask = load_mask(write_rtstruct(tmp_path / "rs.dcm", {"ring": ring}, "CLOSEDPLANAR_XOR"), GRID)
    assert milliliters(mask) == pytest.approx(np.pi * (1.5**2 - 0.8**2) * 2.25, rel=0.015)
    assert mask.array[tuple(np.rint(GRID.to_index(CENTER)).astype(int))] == 0


def test_a_gap_of_several_planes_stays_empty_and_a_lone_plane_is_one_slice(tmp_path):
    two = [circle(10, z) for z in (20, 22.5, 25, 40, 42.5, 45)]
    mask = load_mask(write_rtstruct(tmp_path / "a.dcm", {"two": two}), GRID)
    heights = GRID.to_world(np.argwhere(mask.array))[:, 2]
    assert not ((heights > 26.3) & (heights < 38.7)).any()
    np.testing.assert_allclose(np.unique(heights), [20, 22.5, 25, 40, 42.5, 45], atol=1.3)
    lone = load_mask(write_rtstruct(tmp_path / "b.dcm", {"one": [circle(10, 30)]}), GRID)
    assert len(np.unique(np.argwhere(lone.array)[:, 2])) == 1


@pytest.mark.parametrize("up", [1, -1])
def test_contours_of_a_stack_of_two_spacings_fill_the_wider_one_too(tmp_path, up):
    grid = Grid.around((10, -20, 0), (1.1, 0.9, 0.5), (37, 41, 191))
    planes = up * (0.1 + np.array([-10, -8, -6, -4, -2, 0, 2, 4, 10, 16, 22]))
    mask = load_mask(write_rtstruct(tmp_path / "rs.dcm", {"GTV": [circle(10, z) for z in planes]}), grid)
    heights = grid.to_world(np.argwhere(mask.array))[:, 2] * up
    wanted = grid.to_world(np.stack([np.zeros(191)] * 2 + [np.arange(191)], -1))[:, 2] * up
    np.testing.assert_allclose(np.unique(heights), np.unique(wanted[(wanted > -10.9) & (wanted < 25.1)]))


def test_structures_are_joined_or_chosen_by_name(tmp_path):
    path = write_rtstruct(
        tmp_path / "rs" / "x.dcm",
        {"GTV": sphere(8), "node": sphere(5, center=CENTER + [12, 12, 10]), "dot": [circle(1, 30)[:2]]},
    )
    both, node = load_mask(path.parent, GRID, roi=["GTV", "node"]), load_mask(path, GRID, roi="node")
    assert both.meta["notes"] == ["joined: GTV, node"]
    assert 0 < node.array.sum() < both.array.sum() and (both.array >= node.array).all()
    assert not load_mask(path, GRID, roi="dot").array.any()
    with pytest.raises(ReadError, match="no structure named gtv; it has GTV, dot, node"):
        load_mask(path, GRID, roi="gtv")


def test_points_are_no_contours_and_a_mask_elsewhere_is_noted(tmp_path):
    path = write_rtstruct(tmp_path / "a.dcm", {"marker": sphere()}, kind="POINT")
    with pytest.raises(ReadError, match="holds no closed planar contours"):
        load_mask(path, GRID)
    far = load_mask(write_rtstruct(tmp_path / "b.dcm", {"far": sphere(center=CENTER + 500)}), GRID)
    assert not far.array.any() and far.meta["notes"] == ["no voxel of the grid lies inside the mask"]


def ball(grid, radius=12.0):
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    return (np.linalg.norm(grid.to_world(index) - CENTER, axis=-1) < radius).astype(np.uint8)


@pytest.mark.parametrize("name", ["m.nii.gz", "m.mha"])
def test_label_files_are_read_nearest_and_keep_their_labels(tmp_path, name):
    mirrored = np.diag([-1.0, 1, 1, 1])
    mirrored[0, 3] = GRID.shape[0] - 1  # the same places, counted from the right
    stored = Grid(GRID.shape, GRID.affine @ mirrored)
    labels = ball(stored) * 3
    if name.endswith("gz"):
        nib.save(nib.Nifti1Image(labels, stored.affine), tmp_path / name)
    else:
        image = sitk.GetImageFromArray(labels.T)
        image.SetSpacing(stored.spacing)
        image.SetOrigin((stored.affine[:3, 3] * FLIP).tolist())
        image.SetDirection((np.diag(FLIP) @ stored.affine[:3, :3] / stored.spacing).ravel().tolist())
        sitk.WriteImage(image, str(tmp_path / name))
    np.testing.assert_array_equal(load_mask(tmp_path, GRID).array, ball(GRID) * 3)


def test_label_files_that_are_no_masks(tmp_path):
    nib.save(nib.Nifti1Image(ball(GRID) * np.float32(0.5), GRID.affine), tmp_path / "p.nii")
    with pytest.raises(VoxelError, match=r"p\.nii: values from 0 to 0\.5, not all whole numbers"):
        load_mask(tmp_path / "p.nii", GRID)
    with pytest.raises(ReadError, match="no named structures"):
        load_mask(tmp_path / "p.nii", GRID, roi="GTV")
    nib.save(nib.Nifti1Image(ball(GRID), None), tmp_path / "q.nii")
    with pytest.raises(OrientationError):
        load_mask(tmp_path / "q.nii", GRID)
    assert load_mask(tmp_path / "q.nii", GRID, assume_orientation="RAS").units == "label"


def test_folders_without_exactly_one_mask_are_named(tmp_path):
    with pytest.raises(ReadError, match="holds 0 masks; exactly one"):
        load_mask(tmp_path, GRID)
    for name in ("a.dcm", "b.dcm"):
        write_rtstruct(tmp_path / name, {"GTV": sphere()})
    with pytest.raises(ReadError, match=r"holds 2 masks; exactly one is expected, or give the file"):
        load_mask(tmp_path, GRID)
    with pytest.raises(ReadError, match=r"mask .*nope does not exist"):
        load_mask(tmp_path / "nope", GRID)
    write_series(tmp_path / "ct", np.zeros((3, 4, 2), np.int16))
    with pytest.raises(ReadError, match="a mask is NIfTI, MHA, NRRD, DICOM SEG or RTSTRUCT; found DICOM CT"):
        load_mask(next((tmp_path / "ct").iterdir()), GRID)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ReadError, match="found something else"):
        load_mask(tmp_path / "x.txt", GRID)


def write_seg(path, segments, *, kind="BINARY", drop_empty=True, stretch=1.0):
    """``segments``: name to ``[i, j, k]`` labels on GRID; empty slices are not stored, as scanners do."""
    dataset = new_file(SegmentationStorage, Modality="SEG", SeriesInstanceUID="1.2.840.8", FrameOfReferenceUID="1.2.3")
    dataset.Columns, dataset.Rows, dataset.SegmentationType = *GRID.shape[:2], kind
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    bits = 1 if kind == "BINARY" else 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.MaximumFractionalValue = 200
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]  # columns run to the right, rows to the front: RAS
    measures.PixelSpacing, measures.SliceThickness = [GRID.spacing[1], GRID.spacing[0]], GRID.spacing[2]
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], []
    dataset.SegmentSequence, planes = [], []
    for number, (name, labels) in enumerate(segments.items(), 1):
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, name
        dataset.SegmentSequence.append(segment)
        for k in range(GRID.shape[2] - 1, -1, -1):
            if labels[:, :, k].any() or not drop_empty:
                own, position, identity = Dataset(), Dataset(), Dataset()
                where = GRID.to_world(np.array([0, 0, k * stretch if k % 2 else k])) * FLIP
                position.ImagePositionPatient = [round(float(value), 5) for value in where]
                identity.ReferencedSegmentNumber = number
                own.PlanePositionSequence, own.SegmentIdentificationSequence = [position], [identity]
                dataset.PerFrameFunctionalGroupsSequence.append(own)
                planes.append(labels[:, :, k].T)
    dataset.NumberOfFrames = len(planes)
    pixels = np.stack(planes)
    dataset.PixelData = pack_bits(pixels) if kind == "BINARY" else pixels.astype(np.uint8).tobytes()
    if kind != "BINARY":
        dataset.PixelData += b"\0" * (len(dataset.PixelData) % 2)
    return save(dataset, path)


def test_dicom_seg_joins_or_chooses_segments(tmp_path):
    tumor = ball(GRID)
    node = np.zeros_like(tumor)
    node[3:7, 4:9, 2] = node[3:7, 4:9, 29] = 1
    path = write_seg(tmp_path / "seg" / "s.dcm", {"tumor": tumor, "node": node})
    joined = load_mask(path.parent, GRID)
    np.testing.assert_array_equal(joined.array, tumor | node)
    assert joined.frame_of_reference == "1.2.3" and joined.meta["notes"] == ["joined: tumor, node"]
    np.testing.assert_array_equal(load_mask(path, GRID, roi="node").array, node)
    with pytest.raises(ReadError, match="no structure named x; it has node, tumor"):
        load_mask(path, GRID, roi="x")


def test_fractional_and_labelmap_segmentations(tmp_path):
    tumor = ball(GRID)
    fractional = write_seg(tmp_path / "a.dcm", {"tumor": tumor * 120 + (1 - tumor) * 60}, kind="FRACTIONAL")
    np.testing.assert_array_equal(load_mask(fractional, GRID).array, tumor)
    labelmap = write_seg(
        tmp_path / "b.dcm", {"tumor": tumor + (ball(GRID, 5.0) * 6)}, kind="LABELMAP", drop_empty=False
    )
    np.testing.assert_array_equal(load_mask(labelmap, GRID).array, tumor - ball(GRID, 5.0))


def test_seg_with_one_plane_and_with_uneven_planes(tmp_path):
    lone = np.zeros(GRID.shape, np.uint8)
    lone[3:20, 4:9, 12] = 1
    np.testing.assert_array_equal(load_mask(write_seg(tmp_path / "a.dcm", {"x": lone}), GRID).array, lone)
    uneven = write_seg(tmp_path / "b.dcm", {"x": ball(GRID)}, stretch=1.02)
    with pytest.raises(ReadError, match="frames do not lie on even steps"):
        load_mask(uneven, GRID)
