"""Slice encoder: planes, strides, chunks, positions."""

import pytest
import torch

from mmfusion.errors import NetworkError
from mmfusion.networks import build
from mmfusion.networks.encoders import build_encoder
from mmfusion.networks.slices import PLANES, cut_slices


def encoder(**options):
    torch.manual_seed(0)
    return build_encoder("slices", 2, 0.06, options={"cnn": "resnet10", **options}).eval()


def volume(cases=2):
    return torch.randn(cases, 2, 11, 17, 13, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cnn", ["resnet10", "vit"])
@pytest.mark.parametrize(("plane", "axis"), [("sagittal", 2), ("coronal", 3), ("axial", 4)])
def test_the_vector_is_the_mean_of_a_loop_over_slices(cnn, plane, axis):
    net, image = encoder(cnn=cnn, plane=plane), volume()
    slices = [net.slice_encoder(image.select(axis, i)) for i in range(image.shape[axis])]
    torch.testing.assert_close(net(image), sum(slices) / len(slices))


@pytest.mark.parametrize(("stride", "taken"), [(1, range(11)), (2, range(0, 11, 2)), (4, (1, 5, 9)), (99, (5,))])
def test_strided_slices_lie_centered(stride, taken):
    image = volume()
    cut = torch.cat(cut_slices(image, 2, stride, 3), 1)
    assert torch.equal(cut, torch.stack([image[:, :, i] for i in taken], 1))
    assert encoder(plane="sagittal", stride=stride).tokens(image).shape[1] == len(taken)


def test_parts_are_of_about_the_same_size():
    """33 slices in 16s would leave one alone, which BatchNorm of a single case cannot take."""
    parts = cut_slices(torch.zeros(1, 1, 33, 2, 2), 2, 1, 32)
    assert [part.shape[1] for part in parts] == [17, 16]


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunks_change_nothing(chunk):
    torch.testing.assert_close(encoder(chunk=chunk).tokens(volume()), encoder().tokens(volume()))


@pytest.mark.parametrize("plane", PLANES)
def test_a_token_sees_its_slice_only_and_knows_its_place(plane):
    net, image = encoder(plane=plane), volume()
    changed = image.clone()
    changed.select(PLANES[plane], 5).add_(1)
    differs = (net.tokens(image) != net.tokens(changed)).any(2)[0]
    assert differs.nonzero().flatten().tolist() == [5]
    same = torch.ones_like(image)
    tokens = net.tokens(same)[0]
    assert torch.cdist(tokens, tokens).fill_diagonal_(1).min() > 1e-3  # the same slice at another place
    position = tokens - net.slice_vectors(same)[0]
    torch.testing.assert_close(position[:, 0], torch.arange(image.shape[PLANES[plane]]).sin(), atol=1e-5, rtol=1e-4)


def test_order_of_slices_is_nothing_to_the_vector():
    net, image = encoder(), volume()
    torch.testing.assert_close(net(image.flip(4)), net(image))
    assert not torch.allclose(net(image.flip(2)), net(image), atol=1e-5)


@pytest.mark.parametrize("cnn", ["resnet10", "vit"])
def test_empty_batch_and_gradients(cnn):
    net = encoder(cnn=cnn)
    assert net(volume(0)).shape == (0, net.out_features) and net.tokens(volume(0)).shape[0] == 0
    net.train()(volume()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_each_modality_its_plane():
    options = {"ct": {"plane": "axial"}, "pet": {"plane": "coronal"}}
    net = build("single_level", dict.fromkeys(options, "slices"), None, ("ct", "pet"), width=0.06,
                encoder_options=options)  # fmt: skip
    assert [part.axis for part in net.encoders] == [4, 3]
    assert net(torch.randn(2, 2, 9, 11, 8), torch.tensor([[1, 0], [1, 1]])).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plane": "axal"}, "unknown slices option plane 'axal'; did you mean 'axial'"),
        ({"cnn": "resnet5"}, "unknown slices option cnn 'resnet5'; did you mean"),
        ({"stride": 0}, "slices option stride must be at least 1, found 0"),
        ({"chunk": 0}, "slices option chunk must be at least 1, found 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(NetworkError, match=message):
        build_encoder("slices", options=options)


def test_slices_that_cannot_be_normalized():
    net = build_encoder("slices", 1, 0.06, "instance", options={"plane": "coronal"})
    net.check_size((33, 5, 9))
    with pytest.raises(NetworkError, match=r"norm 'instance' needs more than 32 voxels .* found 32 x 9"):
        net.check_size((32, 40, 9))


def test_only_volumes_have_slices():
    with pytest.raises(NetworkError, match=r"encoder 'slices' takes volumes \(spatial_dims 3\), found spatial_dims 2"):
        build_encoder("slices", spatial_dims=2)
