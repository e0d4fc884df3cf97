"""Masks: drawn shapes of known volume, label files and DICOM SEG come onto the grid that asks."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from io_dicom import circle, new_file, save, write_rtstruct, write_series
from pydicom import Dataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import SegmentationStorage

from mmfusion.errors import OrientationError, ReadError, VoxelError
from mmfusion.io import load_mask, open_mask
from mmfusion.volume import Grid, Transform

GRID = Grid.around((10, -20, 30), (1.1, 0.9, 2.5), (47, 51, 33))
FLIP = np.array([-1.0, -1, 1])
CENTER = np.array([10.0, -20, 30])


def sphere(radius=15.0, step=30 / 23, center=CENTER):
    heights = center[2] + np.arange(-radius + step / 2, radius, step)
    return [circle(np.sqrt(radius**2 - (z - center[2]) ** 2), z, center) for z in heights]


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
    assert both.meta["notes"] == ["joined: GTV, node; beside it dot"]
    assert node.meta["notes"] == ["node is used; beside it GTV, dot"]
    assert (both.meta["rois"], both.meta["others"]) == (["GTV", "node"], ["dot"])
    assert 0 < node.array.sum() < both.array.sum() and (both.array >= node.array).all()
    assert not load_mask(path, GRID, roi="dot").array.any()
    for same in ("gtv", ["g*", "NODE"], "g?v, nod*", "g*, gtv,node"):
        wanted = both if same != "gtv" else load_mask(path, GRID, roi="GTV")
        np.testing.assert_array_equal(load_mask(path, GRID, roi=same).array, wanted.array)
    np.testing.assert_array_equal(load_mask(f"{path}#node", GRID, roi="GTV").array, node.array)
    with pytest.raises(ReadError, match=r"no structure named CTV\*; it has GTV, dot, node"):
        load_mask(path, GRID, roi="node,CTV*")


def test_a_name_is_found_in_any_spelling_and_brackets_are_letters(tmp_path):
    names = ["GTV1", "GTV[1]", "a, b", "L\u00e4sion"]
    path = write_rtstruct(tmp_path / "rs.dcm", {name: sphere(5) for name in names})
    for roi, wanted in (("gtv[1]", 1), ("A, B", 2), ("la\u0308sion", 3)):
        assert load_mask(path, GRID, roi=roi).meta["rois"] == [names[wanted]]
    assert load_mask(path, GRID, roi="GTV1,GTV[1]").meta["rois"] == names[:2]


OUTLINE, ORGANS = (
    [circle(30, z) for z in (25, 30, 35)],
    ("External", "BODY", "Lung_L", "SpinalCord_PRV05", "CouchSurface"),
)


@pytest.mark.parametrize("name", ["GTV-1", "GTV_lung", "Lung lesion", "met_3", "ROI-1", "Liver tumour", "1", "Läsion"])
def test_the_only_structure_that_can_be_a_lesion_is_used(tmp_path, name):
    path = write_rtstruct(tmp_path / "rs.dcm", {**dict.fromkeys(ORGANS, OUTLINE), name: sphere(8), "none drawn": []})
    mask = load_mask(path, GRID)
    np.testing.assert_array_equal(mask.array, load_mask(path, GRID, roi=name).array)
    others = ", ".join((*ORGANS, "none drawn"))
    assert mask.meta["notes"] == [f"{name} is used, the only one that can be a lesion; beside it {others}"]
    assert mask.meta["others"] == [*ORGANS, "none drawn"]


def test_types_tell_organs_from_lesions_too(tmp_path):
    drawn = {"a": OUTLINE, "b": OUTLINE, "c": sphere(8), "d": OUTLINE, "GTV": sphere(5)}
    types = {"a": "EXTERNAL", "b": "ORGAN", "d": "SUPPORT", "GTV": "ORGAN"}  # as many programs write for everything
    three = {name: drawn[name] for name in "abcd"}
    assert load_mask(write_rtstruct(tmp_path / "a.dcm", three, types=types), GRID).meta["rois"] == ["c"]
    lone = write_rtstruct(tmp_path / "b.dcm", {"b": OUTLINE}, types=types)
    assert load_mask(lone, GRID).meta["rois"] == ["b"]
    with pytest.raises(ReadError, match=r"holds 2 structures that can be the lesion: c, GTV\. Name the one.* roi"):
        load_mask(write_rtstruct(tmp_path / "c.dcm", drawn, types=types), GRID)


@pytest.mark.parametrize(
    "names", [["External"], ["Skin"], ["Kidney Contour"], ["Lungs-GTV"], ["Lung_R", "body", "Brain Stem"]]
)
def test_body_and_organs_are_no_lesion_unless_they_are_named(tmp_path, names):
    path = write_rtstruct(tmp_path / "rs.dcm", dict.fromkeys(names, OUTLINE))
    said = rf"rs\.dcm holds {', '.join(names)}, which is the body, an organ or equipment, and no lesion\. If it is"
    with pytest.raises(ReadError, match=said):
        open_mask(path)
    assert load_mask(path, GRID, roi=names[0]).array.any()


def test_structures_of_two_worlds_are_not_joined(tmp_path):
    def edit(dataset):
        dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "7.7"

    path = write_rtstruct(tmp_path / "rs.dcm", {"a": sphere(8), "b": sphere(5)}, edit=edit)
    assert (open_mask(path, roi="a").frame_of_reference, open_mask(path, roi="b").frame_of_reference) == (
        "1.2.3",
        "7.7",
    )
    with pytest.raises(ReadError, match="a, b were drawn in different frames of reference; name one"):
        open_mask(path, roi="*")


@pytest.mark.parametrize("kind", ["", "CLOSEDPLANAR", "CLOSED PLANAR"])
def test_contours_of_no_known_type_are_closed(tmp_path, kind):
    whole = load_mask(write_rtstruct(tmp_path / "a.dcm", {"GTV": sphere()}), GRID)
    some = write_rtstruct(tmp_path / "b.dcm", {"GTV": sphere()}, lambda n: kind if n in (7, 8) else "CLOSED_PLANAR")
    mask = load_mask(some, GRID)
    np.testing.assert_array_equal(mask.array, whole.array)
    said = "2 contours of GTV have no known ContourGeometricType and are taken as closed"
    assert (mask.meta["notes"], mask.meta["doubts"]) == ([said], [])


@pytest.mark.parametrize(("kind", "doubted"), [("POINT", False), ("OPEN_PLANAR", True), ("OPEN_NONPLANAR", True)])
def test_points_and_open_lines_are_left_out(tmp_path, kind, doubted):
    def kinds(n):
        return kind if n == 3 else "CLOSED_PLANAR"

    far = [*sphere()[:3], circle(20, 30) + [40, 0, 0], *sphere()[3:]]
    mask = load_mask(write_rtstruct(tmp_path / "a.dcm", {"GTV": far}, kinds), GRID)
    whole = load_mask(write_rtstruct(tmp_path / "b.dcm", {"GTV": sphere()}), GRID)
    np.testing.assert_array_equal(mask.array, whole.array)
    said = ["1 of 24 contours of GTV are open lines and left out. Close them, or check the mask"]
    assert mask.meta["doubts"] == (said if doubted else [])


def test_an_outline_that_is_written_twice_does_not_vanish(tmp_path):
    once = load_mask(write_rtstruct(tmp_path / "a.dcm", {"GTV": sphere()}), GRID)
    changed = [lambda c: c, lambda c: c[::-1], lambda c: np.roll(c, 31, 0), lambda c: np.vstack([c, c[:1]])]
    changed += [lambda c: np.concatenate(np.stack([c, (c + np.roll(c, -1, 0)) / 2], 1))]  # with more points
    for again in changed:
        twice = [*sphere(), *(again(contour) for contour in sphere()[5:12])]
        mask = load_mask(write_rtstruct(tmp_path / "b.dcm", {"GTV": twice}), GRID)
        np.testing.assert_array_equal(mask.array, once.array)
        assert mask.meta["notes"] == ["7 outlines of GTV are written twice and count once"]
    xor = write_rtstruct(tmp_path / "c.dcm", {"GTV": [*sphere(), *sphere()[5:]]}, "CLOSEDPLANAR_XOR")
    mask = load_mask(xor, GRID)
    assert mask.array.any(axis=(0, 1)).sum() < once.array.any(axis=(0, 1)).sum() / 2
    assert mask.meta["doubts"][0].startswith("18 outlines of GTV are written twice and cancel each other")


def test_outlines_that_cross_are_joined(tmp_path):
    heights = CENTER[2] + np.arange(-10, 10.1, 2.5)
    bar, post = (np.array([[-a, -b], [a, -b], [a, b], [-a, b]]) + CENTER[:2] for a, b in ((15, 6), (5, 16)))
    box = [[np.column_stack([corners, np.full(4, z)]) for z in heights] for corners in (bar, post)]
    drawn = {
        "a": [circle(12, z, CENTER + [side, 0, 0]) for z in heights for side in (-5, 5)],  # two circles
        "b": [points for pair in zip(*box, strict=True) for points in pair],  # a cross: no corner lies within the other
        "c": [*(circle(12, z) for z in heights), circle(12, heights[4], CENTER + [6, 0, 0])],  # in one plane only
    }
    for name, contours in drawn.items():
        mask = load_mask(write_rtstruct(tmp_path / f"{name}.dcm", {"GTV": contours}), GRID)
        alone = [
            load_mask(write_rtstruct(tmp_path / "x.dcm", {"GTV": part}), GRID).array
            for part in ((contours[::2], contours[1::2]) if name != "c" else (contours[:-1],))
        ]
        union = np.any(alone, axis=0)
        assert mask.meta["notes"] == ["outlines of GTV cross each other; what one of them encloses is inside"]
        if name != "c":
            np.testing.assert_array_equal(mask.array, union)
        else:  # the slab of the second circle is as thick as the step
            more = (mask.array > 0) & ~union
            assert (mask.array >= union).all() and milliliters(mask.replace(array=more)) == pytest.approx(0.37, rel=0.2)
    xor = write_rtstruct(tmp_path / "x.dcm", {"GTV": drawn["a"]}, "CLOSEDPLANAR_XOR")
    assert load_mask(xor, GRID).array[tuple(np.rint(GRID.to_index(CENTER)).astype(int))] == 0


def test_a_hole_behind_a_channel_and_a_thin_rim_stay(tmp_path):
    """A keyhole: one outline that goes in through a channel, round the hole, and out again."""
    heights = CENTER[2] + np.arange(-10, 10.1, 2.5)
    keyhole = [np.vstack([circle(15, z), circle(15, z)[:1], circle(8, z)[:1], circle(8, z)[::-1]]) for z in heights]
    holes = [circle(radius, z) for z in heights for radius in (15, 8)]
    masks = [
        load_mask(write_rtstruct(tmp_path / f"{n}.dcm", {"GTV": drawn}), GRID).array
        for n, drawn in enumerate((keyhole, holes, [circle(radius, z) for z in heights for radius in (15, 14.8)]))
    ]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert masks[1].sum() > 10 * masks[2].sum()


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
    nib.save(nib.Nifti1Image(ball(GRID), None), tmp_path / "q.nii")
    with pytest.raises(OrientationError):
        load_mask(tmp_path / "q.nii", GRID)
    assert load_mask(tmp_path / "q.nii", GRID, assume_orientation="RAS").units == "label"


def test_labels_of_a_label_file_are_chosen_by_number(tmp_path):
    labels = ball(GRID) + ball(GRID, 8.0) * 2 + ball(GRID, 4.0) * 9  # 1, 3, 12
    nib.save(nib.Nifti1Image(labels, GRID.affine), tmp_path / "m.nii.gz")
    assert load_mask(tmp_path / "m.nii.gz", GRID).meta["notes"] == ["all labels are used: 1, 3, 12"]
    for roi, wanted in (("3", labels == 3), ("1,12", (labels == 1) | (labels == 12)), ("*", labels > 0)):
        mask = load_mask(f"{tmp_path / 'm.nii.gz'}#{roi}", GRID)
        np.testing.assert_array_equal(mask.array, wanted)
    with pytest.raises(ReadError, match="no structure named 2; it has 1, 12, 3"):
        load_mask(tmp_path / "m.nii.gz", GRID, roi="2")


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
    with pytest.raises(ReadError, match="a mask is NIfTI, MGH, MHA, MHD, NRRD, DICOM SEG or RTSTRUCT; found DICOM CT"):
        load_mask(next((tmp_path / "ct").iterdir()), GRID)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(ReadError, match="found something else"):
        load_mask(tmp_path / "x.txt", GRID)


def write_seg(path, segments, *, kind="BINARY", drop_empty=True, stretch=1.0, thickness=None, spacing=None, every=1):
    """``segments``: name to ``[i, j, k]`` labels on GRID; empty slices are not stored, as scanners do."""
    dataset = new_file(SegmentationStorage, Modality="SEG", SeriesInstanceUID="1.2.840.8", FrameOfReferenceUID="1.2.3")
    dataset.Columns, dataset.Rows, dataset.SegmentationType = *GRID.shape[:2], kind
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    bits = 1 if kind == "BINARY" else 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.MaximumFractionalValue = 200
    shared, plane, measures = Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]  # columns run to the right, rows to the front: RAS
    measures.PixelSpacing, measures.SliceThickness = [GRID.spacing[1], GRID.spacing[0]], thickness or GRID.spacing[2]
    if spacing:
        measures.SpacingBetweenSlices = spacing
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], []
    dataset.SegmentSequence, planes = [], []
    for number, (name, labels) in enumerate(segments.items(), 1):
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, name
        dataset.SegmentSequence.append(segment)
        for k in range(GRID.shape[2] - 1, -1, -1):
            if k % every == 0 and (labels[:, :, k].any() or not drop_empty):
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
    with pytest.raises(ReadError, match="holds 2 structures that can be the lesion: tumor, node"):
        load_mask(path.parent, GRID)
    joined = load_mask(path.parent, GRID, roi="*")
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


@pytest.mark.parametrize(
    ("thickness", "spacing", "every", "step"),
    [
        (5.0, None, 1, 2.5),  # slices that overlap
        (1.25, None, 1, 2.5),  # slices with gaps between them
        (0.5, None, 1, 2.5),
        (2.5, None, 2, 5.0),  # or every other slice was empty, which no lesion does
        (2.0, None, 2, 5.0),
        (5.0, 2.5, 1, 2.5),
        (4.0, 2.5, 1, 2.5),
        (2.5, 5.0, 2, 5.0),
    ],
)
def test_seg_slices_that_are_thicker_or_thinner_than_their_step(tmp_path, thickness, spacing, every, step):
    """Neither is every second slice lost, nor are there holes between the slices."""
    tumor = ball(GRID)
    path = write_seg(tmp_path / "s.dcm", {"tumor": tumor}, thickness=thickness, spacing=spacing, every=every)
    mask = load_mask(path, GRID)
    if every == 1:
        np.testing.assert_array_equal(mask.array, tumor)
    else:
        there = np.flatnonzero(tumor.any((0, 1)))
        assert mask.array[:, :, there[1] : there[-1]].any((0, 1)).all()
        assert milliliters(mask) == pytest.approx(milliliters(mask.replace(array=tumor)), rel=0.1)
    note = f"slices {thickness:g} mm thick lie {step:g} mm apart and count as neighbors"
    assert mask.meta["notes"] == ([] if spacing else [note])


def test_seg_slices_that_lie_far_apart_have_empty_ones_between(tmp_path):
    few = np.zeros(GRID.shape, np.uint8)
    few[3:20, 4:9, [4, 7, 15, 28]] = 1
    np.testing.assert_array_equal(load_mask(write_seg(tmp_path / "a.dcm", {"x": few}), GRID).array, few)
    neighbors = {"x": few, "y": ball(GRID)}  # another segment shows the step, though each slice is thin
    thin = write_seg(tmp_path / "b.dcm", neighbors, thickness=0.4)
    np.testing.assert_array_equal(load_mask(thin, GRID, roi="x").array, few)


def test_a_normal_structure_of_a_seg_is_no_lesion(tmp_path):
    path = write_seg(tmp_path / "s.dcm", {"left kidney": ball(GRID, 20.0), "mass": ball(GRID)})
    mask = load_mask(path, GRID)
    np.testing.assert_array_equal(mask.array, ball(GRID))
    assert mask.meta["others"] == ["left kidney"]
