"""Pictures with known pixels: what is left, what is equal, and where squares lie."""

import numpy as np
import pytest
from report_folders import body
from scipy.stats import rankdata

from mmfusion.errors import GeometryError, OptionError
from mmfusion.report import (
    checkerboard,
    equalize,
    figure_joint_histogram,
    figure_map,
    figure_overlay,
    figure_slices,
)
from mmfusion.report.page import png_of_array, png_of_figure
from mmfusion.report.pictures import GRAYS, PLANES, comparison, histogram_picture, palette, planes_of, strip


def decode(png: bytes) -> np.ndarray:
    import io

    from matplotlib.image import imread

    found = np.round(255 * imread(io.BytesIO(png))).astype(np.uint8)
    return found[:, :, :3] if found.ndim == 3 else found


def test_checkerboard_takes_turns():
    board = checkerboard(np.zeros((6, 4)), np.ones((6, 4)), squares=3)
    assert board.tolist() == [[0, 0, 1, 1]] * 2 + [[1, 1, 0, 0]] * 2 + [[0, 0, 1, 1]] * 2
    image = np.random.default_rng(0).random((11, 17))
    assert np.array_equal(checkerboard(image, image), image)


def test_equalized_modalities_give_a_body_the_same_gray():
    ct, pet = body((23, 19, 29), 0)
    inside = ct > 0.3
    (a,), (b,) = equalize([ct]), equalize([pet])
    assert abs(ct[inside].mean() - pet[inside].mean()) > 0.3
    assert abs(a[inside].mean() - b[inside].mean()) < 0.15
    assert a[0, 0, 0] < 0.1 and b[0, 0, 0] < 0.3


def test_equalization_ranks_as_scipy_does():
    image = np.random.default_rng(0).gamma(2, 0.1, (13, 11)).clip(0, 1).astype(np.float16)
    (gray,) = equalize([image])
    inside = gray > 0.3
    midranks = (rankdata(image[inside]) - 0.5) / inside.sum()
    assert inside.sum() > 50 and gray[inside] == pytest.approx(0.3 + 0.7 * midranks, abs=1e-6)


def test_equalization_keeps_order_and_ignores_the_scale():
    image = np.random.default_rng(0).permutation(143).reshape(13, 11).astype(np.float16)
    (once,), (scaled,) = equalize([image]), equalize([image * np.float16(4)])
    assert np.array_equal(np.argsort(once, None), np.argsort(image, None))
    assert once == pytest.approx(scaled, abs=1e-6)


def test_empty_and_broken_planes_are_dark():
    assert equalize([np.zeros((3, 5))])[0].max() == 0
    assert np.isfinite(equalize([np.array([[np.nan, 1.0], [2.0, 0.0]])])[0]).all()


def test_strip_shows_x_to_the_right_and_y_upward():
    planes = {name: np.zeros((61, 47), np.float32) for name in PLANES}
    for plane in planes.values():
        plane[40:50, 36:42] = 1  # right of and above the middle
    picture = strip(planes, planes)
    factor, width = 2, 61 * 2 + 6
    assert picture.shape == (47 * factor, 3 * width) and picture.dtype == np.uint8
    assert picture[(46 - 38) * factor, 3 + 45 * factor] > 100 and picture[38 * factor, 3 + 45 * factor] == 0


def test_strip_keeps_one_scale_and_stamps_letters():
    planes = {"axial": np.zeros((80, 60)), "coronal": np.zeros((80, 90)), "sagittal": np.zeros((60, 90))}
    picture = strip(planes, planes)
    assert picture.shape == (90, 80 + 80 + 60 + 18)
    assert picture[:, :86].max() == 255  # letters are all that is there
    large = {name: np.zeros((1200, 1100)) for name in PLANES}
    assert strip(large, large).shape == (367, 3 * (400 + 6))


def test_tiny_planes_have_no_room_for_letters():
    tiny = {name: np.zeros((300, 2)) for name in PLANES}
    assert strip(tiny, tiny).shape == (2, 3 * 306)


def test_planes_of_needs_all_three():
    arrays = {"after_pet_axial": np.zeros((2, 2)), "after_pet_coronal": np.zeros((2, 2))}
    assert planes_of(arrays, "after_pet") is None
    arrays["after_pet_sagittal"] = np.zeros((2, 2))
    assert list(planes_of(arrays, "after_pet")) == ["axial", "coronal", "sagittal"]


def test_histogram_picture_has_the_reference_to_the_right():
    counts = np.zeros((32, 32))
    counts[31, 0] = 100  # high reference, low moving: bottom right
    picture = palette()[histogram_picture(counts)]
    assert picture.shape == (128, 128, 3)
    assert picture[-1, -1].sum() > 600 and picture[0, 0].sum() < 50
    assert palette()[histogram_picture(np.zeros((4, 4)))].max() < 20


def test_a_comparison_has_the_histogram_at_the_right():
    planes = {name: np.full((61, 47), 0.5, np.float32) for name in PLANES}
    picture = comparison(planes, planes, np.ones((32, 32)))
    gray, colors = picture[:, :-70], picture[:64, -67:-3]
    assert picture.shape == (94, 3 * (2 * 61 + 6) + 6 + 70) and gray.max() < GRAYS
    assert np.median(palette()[gray]) == pytest.approx(255 / 2, abs=1) and np.all(colors == 255)
    assert comparison(planes, planes).shape == (94, 3 * (2 * 61 + 6))


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3)])
def test_png_keeps_every_pixel(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = decode(png_of_array(picture))
    assert np.array_equal(found, picture)


def test_png_of_indices_has_the_colors_of_the_palette():
    picture = np.arange(256, dtype=np.uint8).reshape(8, 32)
    assert np.array_equal(decode(png_of_array(picture, palette())), palette()[picture])


@pytest.mark.parametrize("kind", ["checkerboard", "contour", "color"])
def test_overlay_has_three_planes_with_letters(kind):
    ct, pet = body((23, 19, 29), 0)
    figure = figure_overlay(ct, pet, kind=kind, spacing=(1, 2, 3), center=(11, 9, 14), title="case 7")
    assert [axis.get_title() for axis in figure.axes] == ["axial", "coronal", "sagittal"]
    assert [axis.get_aspect() for axis in figure.axes] == [2, 3, 1.5]
    assert [[t.get_text() for t in axis.texts] for axis in figure.axes] == [list("LRPA"), list("LRIS"), list("PAIS")]
    assert "patient's left" in figure.get_supxlabel() and len(png_of_figure(figure)) > 1000


def test_slices_show_the_planes_through_the_center():
    array = np.arange(5 * 7 * 9, dtype=float).reshape(5, 7, 9)
    figure = figure_slices({"ct": array, "pet": array}, center=(1, 2, 3))
    shown = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    assert len(shown) == 6
    for image, expected in zip(shown, (array[:, :, 3], array[:, 2], array[1]), strict=False):
        assert np.array_equal(image, expected.T)


@pytest.mark.parametrize(("signed", "limits", "cmap"), [(False, (0, 4), "hot"), (True, (-4, 4), "bwr")])
def test_a_map_is_transparent_at_zero_and_colored_by_its_sign(signed, limits, cmap):
    volume, values = np.random.default_rng(0).random((5, 7, 9)), np.zeros((5, 7, 9))
    values[1, 2, 3], values[1, 3, 3] = 1, -1
    figure = figure_map(volume, values, signed=signed, largest=4, label="SUVbw", center=(1, 2, 3))
    gray, colors = figure.axes[0].images
    assert np.array_equal(gray.get_array(), volume[:, :, 3].T) and colors.get_array()[2, 1] == 1
    assert colors.get_clim() == limits and colors.get_cmap().name == cmap
    opacity = np.asarray(colors.get_alpha())[:, 1]
    assert opacity == pytest.approx(0.7 * 1.5 / 4 * np.array([0, 0, 1, signed, 0, 0, 0]))
    assert figure.axes[3].get_ylabel() == "SUVbw" and len(png_of_figure(figure)) > 1000


def test_the_scale_of_a_map_is_that_of_its_largest_values():
    values = np.linspace(0, 1, 11 * 13 * 17).reshape(11, 13, 17)
    assert figure_map(values, -values, signed=True).axes[0].images[1].get_clim() == pytest.approx(
        (-0.999, 0.999), abs=1e-6
    )
    assert figure_map(values, 0 * values).axes[0].images[1].get_clim() == (0, 1e-6)


def test_joint_histogram_counts_the_voxels_of_the_mask():
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 7, 8, 9))
    figure = figure_joint_histogram(a, b, mask=a > 0.5, bins=8, title="t")
    counts = 10 ** np.asarray(figure.axes[0].collections[0].get_array()) - 1
    assert counts.sum() == pytest.approx(np.sum(a > 0.5)) and counts.shape == (8, 8)


def test_volumes_of_different_shape_or_unknown_kind_are_refused():
    a, b = np.zeros((3, 4, 5)), np.zeros((3, 4, 6))
    with pytest.raises(GeometryError, match=r"shapes \(3, 4, 5\) and \(3, 4, 6\) cannot be laid over"):
        figure_overlay(a, b)
    with pytest.raises(GeometryError, match="cannot be laid over each other; resample both to one Grid"):
        figure_map(a, b)
    with pytest.raises(OptionError, match="unknown kind of overlay 'chequer'"):
        figure_overlay(a, a, kind="chequer")
