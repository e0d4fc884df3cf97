"""ViT and Swin against torch's and MONAI's layers, with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import swin_unetr
from torch import nn

from mmfusion.errors import NetworkError
from mmfusion.networks.encoders import build_encoder
from mmfusion.networks.swin import PatchMerging, SwinEncoder, WindowBlock, from_windows, to_windows
from mmfusion.networks.vit import ViTEncoder, pad_to_multiple

SIZES = {2: (11, 17), 3: (11, 17, 13)}


def vit(spatial_dims=3, **options):
    torch.manual_seed(0)
    defaults = {"patch": 4, "dim": 12, "layers": 2, "heads": 3, "mlp_dim": 20, "positions": 3}
    return ViTEncoder(2, spatial_dims=spatial_dims, **{**defaults, **options}).eval()


def swin(spatial_dims=3, **options):
    torch.manual_seed(0)
    defaults = {"patch": 2, "dim": 8, "depths": (2, 2), "heads": 2, "window": 2}
    return SwinEncoder(2, spatial_dims=spatial_dims, **{**defaults, **options}).eval()


def torchs_layer(block, dim, heads, hidden):
    """torch.nn.TransformerEncoderLayer with the weights of our block."""
    layer = nn.TransformerEncoderLayer(dim, heads, hidden, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    own = {f"self_attn.out_proj.{k}": v for k, v in block.project.state_dict().items()}
    for name, part in (("norm1", block.norm1), ("norm2", block.norm2), ("linear1", block.mlp[0])):
        own.update({f"{name}.{k}": v for k, v in part.state_dict().items()})
    own.update({f"linear2.{k}": v for k, v in block.mlp[3].state_dict().items()})
    own.update({"self_attn.in_proj_weight": block.qkv.weight, "self_attn.in_proj_bias": block.qkv.bias})
    layer.load_state_dict(own)
    return layer


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_vit_is_torchs_layers_on_patches_cut_by_hand(spatial_dims):
    encoder = vit(spatial_dims)
    image = torch.randn(2, 2, *(12, 8, 4)[:spatial_dims])
    patches = image
    for axis in range(spatial_dims):
        patches = patches.unfold(2 + axis, 4, 4)  # [B, C, *patches, *voxels]
    patches = patches.flatten(2, 1 + spatial_dims).flatten(3).transpose(1, 2).flatten(2)  # [B, patches, C * voxels]
    tokens = patches @ encoder.embed.project.weight.flatten(1).T + encoder.embed.project.bias
    grid = [n // 4 for n in image.shape[2:]]
    place = F.interpolate(encoder.position, grid, mode=("bilinear", "trilinear")[spatial_dims - 2])
    tokens = torch.cat([encoder.class_token.expand(2, 1, 12), tokens + place.flatten(2).transpose(1, 2)], 1)
    for block in encoder.transformer[:2]:
        tokens = torchs_layer(block, 12, 3, 20)(tokens)
    tokens = encoder.transformer[2](tokens)
    torch.testing.assert_close(encoder(image), tokens[:, 0])
    torch.testing.assert_close(encoder.tokens(image), tokens[:, 1:])


def test_vit_at_the_papers_size():
    """ViT-B/16 (the paper: 86 M) has 86,567,656 parameters with the linear layer to 1000 classes, and 197 tokens."""
    paper = {"patch": 16, "dim": 768, "layers": 12, "heads": 12, "mlp_dim": 3072, "positions": 14}
    with torch.device("meta"):
        encoder = ViTEncoder(3, spatial_dims=2, **paper)
        assert encoder.tokens(torch.empty(1, 3, 224, 224)).shape == (1, 196, 768)
    head = 768 * 1000 + 1000
    class_position = 768  # ours is a part of the class token
    assert sum(p.numel() for p in encoder.parameters()) + head + class_position == 86_567_656


def test_positions_are_the_table_itself_on_its_own_grid():
    image = torch.randn(1, 2, 12, 12, 12)
    seen = []
    encoder = vit()
    encoder.drop.register_forward_hook(lambda module, args, out: seen.append(out))
    encoder(image)
    expected = (encoder.embed(image) + encoder.position).flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen[0][:, 1:], expected)
    nn.init.zeros_(encoder.position)  # without positions the order of the patches is nothing to the class token
    turned = image.unflatten(2, (3, 4)).flip(2).flatten(2, 3)
    torch.testing.assert_close(encoder(turned), encoder(image))


@pytest.mark.parametrize("make", [vit, swin])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_any_size_is_padded_with_zeros(make, spatial_dims):
    encoder, image = make(spatial_dims), torch.randn(2, 2, *SIZES[spatial_dims])
    whole = F.pad(image, [0, 20 - 17, 0, 12 - 11] if spatial_dims == 2 else [0, 16 - 13, 0, 20 - 17, 0, 12 - 11])
    torch.testing.assert_close(pad_to_multiple(image, 4), whole)
    assert encoder(image).shape == (2, encoder.out_features)
    if make is vit:
        torch.testing.assert_close(encoder(image), encoder(whole))
    image.requires_grad_()
    encoder(image)[:, 0].sum().backward()
    assert (image.grad != 0).all()  # and nothing is cropped


@pytest.mark.parametrize("make", [vit, swin])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_every_parameter_gets_a_gradient_from_each_view(make, spatial_dims):
    image = torch.randn(2, 2, *SIZES[spatial_dims])
    for view in ("forward", "tokens") + (("pyramid",) if make is swin else ()):
        encoder = make(spatial_dims, dropout=0.1).train()
        result = getattr(encoder, view)(image)
        sum(part[..., ::2].sum() for part in (result if view == "pyramid" else [result])).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters()), view


@pytest.mark.parametrize("size", [(8, 4, 12), (4, 6)])
def test_windows_are_what_slicing_cuts(size):
    maps = torch.randn(2, *size, 5)
    windows = to_windows(maps, [2] * len(size))
    expected = []
    for case in maps:
        corners = torch.ones([n // 2 for n in size]).nonzero() * 2
        expected += [case[tuple(slice(c, c + 2) for c in corner)].flatten(0, -2) for corner in corners.tolist()]
    assert torch.equal(windows, torch.stack(expected))
    assert torch.equal(from_windows(windows, [2] * len(size), list(size)), maps)


def literal_window_block(block, maps, shift):
    """Voxel by voxel: each attends to those of its window, which are looked up by integer division."""
    inner, (size, window) = block.block, (maps.shape[:-1], block.window)
    places = torch.ones(size).nonzero()
    normed = inner.norm1(maps.flatten(0, -2))
    q, k, v = inner.qkv(normed).unflatten(1, (3, inner.heads, -1)).unbind(1)  # each [N, heads, d]
    begin = torch.tensor([shift if n > window else 0 for n in size])
    home = (places - begin).div(torch.tensor([min(n, window) for n in size]), rounding_mode="floor")
    mixed = []
    for i, place in enumerate(places):
        mates = (home == home[i]).all(1).nonzero().flatten()
        index = torch.zeros(len(mates), dtype=torch.long)
        for axis in range(len(size)):
            index = index * (2 * window - 1) + place[axis] - places[mates, axis] + window - 1
        scores = (q[i] * k[mates]).sum(2) / q.shape[2] ** 0.5 + block.bias[index]  # [mates, heads]
        mixed.append((scores.softmax(0).unsqueeze(2) * v[mates]).sum(0).flatten())
    tokens = maps.flatten(0, -2) + inner.project(torch.stack(mixed))
    return (tokens + inner.mlp(inner.norm2(tokens))).reshape(maps.shape)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("size", "window"), [((5, 7), 3), ((3, 2, 5), 3), ((4, 5, 2), 4), ((4, 1, 3), 2)])
def test_a_window_block_is_its_literal_form_at_any_size(size, window, shifted):
    torch.manual_seed(0)
    block = WindowBlock(8, 2, 12, window, shifted, axes=len(size)).eval()
    nn.init.normal_(block.bias)
    maps = torch.randn(2, *size, 8)
    expected = torch.stack([literal_window_block(block, case, window // 2 if shifted else 0) for case in maps])
    torch.testing.assert_close(block(maps), expected, atol=1e-5, rtol=1e-4)


def monais_stage(stage, dim, merging, spatial_dims, monkeypatch):
    """A stage of MONAI's Swin with the weights of ours; its einops only moves the channels."""

    def move(maps, pattern):
        return maps.movedim(1, -1) if pattern.startswith("b c") else maps.movedim(-1, 1)

    monkeypatch.setattr(swin_unetr, "rearrange", move)
    theirs = swin_unetr.BasicLayer(
        dim, 2, 2, [2] * spatial_dims, [0.0, 0.0], qkv_bias=True, downsample=swin_unetr.PatchMergingV2
    ).eval()
    for to, block in zip(theirs.blocks, stage, strict=True):
        inner = block.block
        pairs = [(to.norm1, inner.norm1), (to.norm2, inner.norm2), (to.attn.qkv, inner.qkv)]
        pairs += [(to.attn.proj, inner.project), (to.mlp.linear1, inner.mlp[0]), (to.mlp.linear2, inner.mlp[3])]
        for part, source in pairs:
            part.load_state_dict(source.state_dict())
        to.attn.relative_position_bias_table.data.copy_(block.bias)
    order = torch.arange(2**spatial_dims * dim).unflatten(0, (-1, dim))
    if spatial_dims == 2:
        order = order[[0, 2, 1, 3]]  # in 2D theirs has the first axis fastest
    theirs.downsample.norm.load_state_dict({k: v[order.flatten()] for k, v in merging.norm.state_dict().items()})
    theirs.downsample.reduction.weight.data.copy_(merging.reduce.weight[:, order.flatten()])
    return theirs


@pytest.mark.parametrize(("spatial_dims", "size"), [(3, (8, 4, 2)), (3, (6, 4, 8)), (2, (10, 4))])
def test_a_stage_is_monais(spatial_dims, size, monkeypatch):
    torch.manual_seed(0)
    blocks = nn.Sequential(*(WindowBlock(8, 2, 32, 2, shifted, axes=spatial_dims) for shifted in (False, True)))
    for block in blocks:
        nn.init.normal_(block.bias)
    merging = PatchMerging(8, spatial_dims)
    nn.init.normal_(merging.norm.weight)
    theirs = monais_stage(blocks.eval(), 8, merging, spatial_dims, monkeypatch)
    maps = torch.randn(2, 8, *size)
    ours = merging(blocks(maps.movedim(1, -1))).movedim(-1, 1)
    torch.testing.assert_close(ours, theirs(maps), atol=1e-5, rtol=1e-4)


def test_swin_t_has_its_published_size():
    """Swin-T (the paper: 29 M; 28,288,354 with 1000 classes), which has a LayerNorm more: behind the embedding."""
    with torch.device("meta"):
        encoder = SwinEncoder(3, dim=96, depths=(2, 2, 6, 2), window=7, spatial_dims=2)
    head = 768 * 1000 + 1000
    assert sum(p.numel() for p in encoder.parameters()) + head + 2 * 96 == 28_288_354


def test_the_pyramid_halves_and_doubles():
    encoder = swin(depths=(1, 2, 1), dim=6)
    maps = encoder.pyramid(torch.randn(2, 2, 11, 17, 13))
    assert [tuple(m.shape) for m in maps] == [(2, 6, 6, 9, 7), (2, 12, 3, 5, 4), (2, 24, 2, 3, 2)]
    assert encoder.pyramid_channels == (6, 12, 24) and encoder.out_features == 24


def test_a_shift_lets_windows_talk():
    """Without shifted blocks a voxel of one window never reaches another."""
    for depth, reached in ((1, False), (2, True)):
        encoder = swin(depths=(depth,), patch=1)
        image = torch.randn(1, 2, 4, 4, 4).requires_grad_()
        encoder.pyramid(image)[0][0, 0, 1, 1, 1].backward()
        assert (image.grad[0, :, 2, 2, 2] != 0).any() == reached


@pytest.mark.parametrize(
    ("encoder", "options", "message"),
    [
        ("vit", {"patch": 0}, "vit option patch must be at least 1, found 0"),
        ("vit", {"layers": 0}, "vit option layers must be at least 1, found 0"),
        ("swin", {"window": 0}, "swin option window must be at least 1, found 0"),
        ("swin", {"depths": ()}, "swin option stages must be at least 1, found 0"),
        ("swin", {"depths": (2, 0)}, "swin option depths must be at least 1, found 0"),
        ("swin", {"hidden": 2}, "unknown swin option 'hidden'"),
    ],
)
def test_options_out_of_range(encoder, options, message):
    with pytest.raises(NetworkError, match=message):
        build_encoder(encoder, options=options)
