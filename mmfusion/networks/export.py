"""Networks in files that answer without this package: ONNX, programs of ``torch.export``, and what MONAI scripts."""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional

import torch
from torch import Tensor, nn

from mmfusion.errors import NetworkError
from mmfusion.files import atomic_path
from mmfusion.networks.network import FusionNetwork, seen_channels

TOLERANCE = 1e-4
_OPSET = 18
_Inputs = tuple[Tensor, ...]


class Scriptable(nn.Module):
    """What ``torch.jit.script`` makes of a network, as MONAI's ``ckpt_export`` calls it: a trace, and a missing input.

    A trace holds for any number of cases, any modalities that are missing, and the size of image that it was made for.
    Built by :meth:`FusionNetwork.__prepare_scriptable__`.

    Args:
        network: stays as it is; the trace holds it in evaluation mode.
        size: of the image, one number an axis.
    """

    def __init__(self, network: FusionNetwork, size: Sequence[int]) -> None:
        super().__init__()
        self.covariates = network.covariates
        image, present, *rest = _example(network, size, True)
        covariates = rest[0] if rest else image.new_zeros(len(image), 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of constants such as sizes, and that torch.jit grows old
            self.trace = torch.jit.trace(_Traced(_evaluated(network)), (image, present, covariates), check_trace=False)

    def forward(self, image: Tensor, present: Optional[Tensor] = None, covariates: Optional[Tensor] = None) -> Tensor:
        """Logits ``[B, K]``; without ``present`` a channel of zeros is absent, without covariates all are unknown."""
        if present is None:
            present = seen_channels(image)
        if covariates is None:
            covariates = torch.full([image.shape[0], self.covariates], float("nan"), device=image.device)
        return self.trace(image, present.to(image.dtype), covariates)


class _Traced(nn.Module):
    """A network that is given all its inputs, as tensors."""

    def __init__(self, network: FusionNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, present: Tensor, covariates: Tensor) -> Tensor:
        return self.network(image, present, covariates if self.network.covariates else None)


def export_onnx(network: FusionNetwork, path: str | Path, size: Sequence[int], *, with_present: bool = True) -> None:
    """Write the network as ONNX: inputs ``image [B, M, *size]``, ``present [B, M]`` float, ``covariates [B, C]``.

    B is free, ``size`` is fixed; the output ``pred [B, K]`` holds the logits. Only rows with the modality
    pass its encoder. The metadata name the modalities, K and the strategy.

    Args:
        network: stays as it is; the file holds it in evaluation mode.
        path: of the file, which appears only after it has answered as the network does (where onnxruntime is there).
        size: of the image, one number an axis.
        with_present: take ``present``; otherwise a channel of zeros only is absent.

    Raises:
        NetworkError: the package onnx is missing, or the file answers otherwise than the network.
    """
    if importlib.util.find_spec("onnx") is None:
        raise NetworkError("writing ONNX needs the package onnx, which is not installed: pip install 'mmfusion[onnx]'")
    network = _evaluated(network)
    given = dict(zip(_names(network, with_present), _example(network, size, with_present), strict=True))
    network.check_input(given["image"], given.get("present"), given.get("covariates"))  # a trace does not
    with atomic_path(path) as part, warnings.catch_warnings():
        # the tracing exporter is the one that keeps row counts free; its warnings are of constants such as sizes
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (),
            str(part),
            kwargs=given,
            input_names=list(given),
            output_names=["pred"],
            dynamic_axes={name: {0: "batch"} for name in [*given, "pred"]},
            opset_version=_OPSET,
            dynamo=False,
        )
        _describe(network, part)
        if importlib.util.find_spec("onnxruntime") is not None:
            _check(network, _onnx_answer(part, list(given)), size, with_present, f"ONNX file {path}")


def export_program(
    network: FusionNetwork, size: Sequence[int], *, with_present: bool = True
) -> torch.export.ExportedProgram:
    """The network as a program of ``torch.export`` with a free batch size, in evaluation mode.

    Args:
        network: stays as it is.
        size: of the image, one number an axis.
        with_present: take ``present``; otherwise a channel of zeros only is absent.

    Raises:
        NetworkError: the program answers otherwise than the network, by more than 1e-4.
    """
    network = _evaluated(network)
    given = dict(zip(_names(network, with_present), _example(network, size, with_present), strict=True))
    shapes = {name: {0: torch.export.Dim.DYNAMIC} for name in given}
    program = torch.export.export(network, (), given, dynamic_shapes=shapes, strict=False)
    module, names = program.module(), list(given)
    _check(
        network, lambda *values: module(**dict(zip(names, values, strict=True))), size, with_present, "exported program"
    )
    return program


def _evaluated(network: FusionNetwork) -> FusionNetwork:
    """A copy in evaluation mode, on the CPU."""
    if not isinstance(network, FusionNetwork):
        raise NetworkError(f"an export takes a network of mmfusion.networks.build, found {type(network).__name__}")
    return copy.deepcopy(network).cpu().eval()


def _names(network: FusionNetwork, with_present: bool) -> list[str]:
    return ["image"] + ["present"] * with_present + ["covariates"] * bool(network.covariates)


def _example(network: FusionNetwork, size: Sequence[int], with_present: bool, cases: int = 3) -> _Inputs:
    """Random inputs in the order of :func:`_names`; the last case has no modality, the one before only the first."""
    count = len(network.modalities)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(cases, count, *size, generator=generator)
    present = torch.ones(cases, count)
    present[-2:] = 0
    present[-2:-1, 0] = 1
    if not with_present:
        image = image * present.reshape([cases, count] + [1] * len(size))
    covariates = torch.randn(cases, network.covariates, generator=generator)
    return (image,) + (present,) * with_present + (covariates,) * bool(network.covariates)


def _check(
    network: FusionNetwork, answer: Callable[..., Tensor], size: Sequence[int], with_present: bool, what: str
) -> None:
    """Refuse (NetworkError) what does not answer as the network does, for several batch sizes."""
    names = _names(network, with_present)
    for cases in (1, 2, 5):
        given = _example(network, size, with_present, cases)
        with torch.no_grad():
            expected = network(**dict(zip(names, given, strict=True)))
            off = float((answer(*given) - expected).abs().max())
        if not off <= TOLERANCE:
            raise NetworkError(
                f"the {what} must answer as the network does, within {TOLERANCE:g}, found a difference of {off:g} "
                f"for {cases} cases; it was not kept: use another form of export for this network"
            )


def _describe(network: FusionNetwork, path: Path) -> None:
    """Put into the ONNX file what its numbers mean."""
    import onnx

    model = onnx.load(str(path))
    about = {
        "modalities": json.dumps(list(network.modalities)),
        "num_classes": str(network.num_classes),
        "strategy": network.strategy,
    }
    onnx.helper.set_model_props(model, about)
    onnx.save(model, str(path))


def _onnx_answer(path: Path, names: Sequence[str]) -> Callable[..., Tensor]:
    """From tensors in the order of ``names`` to what onnxruntime answers."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}

    def answer(*given: Tensor) -> Tensor:
        pairs = zip(names, given, strict=True)
        feed = {name: value.numpy() for name, value in pairs if name in known}
        return torch.from_numpy(session.run(["pred"], feed)[0])

    return answer
