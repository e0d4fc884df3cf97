"""What answers for a trained model: PyTorch, or ONNX Runtime; and the file of the latter."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from mmfusion.errors import CohortError, MmfusionError, OptionError, OutputError, ReadError, first_line
from mmfusion.files import ONNX, clear_if_free, folder_kind
from mmfusion.options import unknown
from mmfusion.predict.model import Model, load_model, model_folder, read_model
from mmfusion.volume import check_device

Engine = Callable[..., torch.Tensor]
"""From :class:`mmfusion.predict.Inputs`, one by one, to logits ``[B, K]`` on the CPU."""


def load_engine(folder: str | Path, engine: str = "eager", device: Any = "cpu") -> tuple[Model, Engine]:
    """The model of a run or bundle, ready to answer.

    Args:
        folder: a run folder or a bundle.
        engine: ``eager`` runs the network in PyTorch; ``onnx`` runs ``model.onnx`` that :func:`export_model`, or
            MONAI's ``onnx_export``, wrote beside ``model.pt``.
        device: of eager, as ``cuda``; ONNX runs on the CPU.

    Raises:
        OptionError: an unknown engine, or a device that cannot be used.
        CohortError: no finished model, no such export, or one of other modalities.
    """
    check_device(str(device))
    if engine == "eager":
        model, network = load_model(folder)
        return model, module_engine(network.to(device), device)
    if engine != "onnx":
        raise OptionError(unknown("engine", engine, ("eager", "onnx")))
    model, file = read_model(folder), model_folder(folder) / ONNX
    if not file.is_file():
        raise CohortError(f"{file.parent} has no {file.name}: run mmfusion export {folder} --engine onnx")
    with _exported(file):
        answer = _onnx_answer(file, model)

    def guarded(*given: torch.Tensor | None) -> torch.Tensor:
        with _exported(file):
            logits = answer(*given)
            if logits.shape != (len(cast(torch.Tensor, given[0])), len(model.classes)):
                raise ValueError(f"it answers with shape {list(logits.shape)}")
        return logits

    return model, guarded


@contextmanager
def _exported(file: Path) -> Iterator[None]:
    """Whatever the runtime says against an exported file, which it cannot read or run, as one sentence."""
    try:
        yield
    except (MmfusionError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the runtime has errors of its own
        raise ReadError(
            f"{file} cannot be used, it is damaged or no export of this model ({first_line(error)[:200]}); export it "
            f"again: mmfusion export {file.parent} --engine onnx"
        ) from error


def export_model(folder: str | Path, engine: str = "onnx") -> Path:
    """Write ``model.onnx`` beside a model's weights, compared with the network before it is kept.

    The file takes ``image [B, M, *size]`` of the size that the model's cases are prepared to, ``present [B, M]`` and,
    where the model has them, ``covariates [B, C]``, all float32, and gives ``pred [B, K]``, the logits; B is free.

    Raises:
        OptionError: an unknown engine.
        NetworkError: the package onnx is missing, or the file answers otherwise than the network.
    """
    from mmfusion.networks import export_onnx  # late, as it takes MONAI

    if engine != "onnx":
        raise OptionError(unknown("export", engine, ("onnx",)))
    model, network = load_model(folder)
    file = model_folder(folder) / ONNX
    place = file.parent.parent if (file.parent.parent / "configs").is_dir() else file.parent
    if folder_kind(place) not in ("run", "bundle"):
        raise OutputError(
            f"{place} is the bundle of another program, and nothing is written into it; copy {file.parent} elsewhere"
        )
    clear_if_free(file.parent)
    export_onnx(network, file, model.case["size"])
    return file


def module_engine(module: torch.nn.Module, device: Any) -> Engine:
    def answer(*given: torch.Tensor | None) -> torch.Tensor:
        with torch.inference_mode():
            return module(*(one.to(device) for one in given if one is not None)).float().cpu()

    return answer


def _onnx_answer(file: Path, model: Model) -> Engine:
    """A session of ONNX Runtime; a file without the input ``present`` takes channels of zeros as absent."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise CohortError("engine onnx needs the package onnxruntime: pip install 'mmfusion[onnx]'")
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    names = {one.name for one in session.get_inputs()}
    channels = {one.name: one.shape[1] for one in session.get_inputs()}.get("image", len(model.modalities))
    if channels != len(model.modalities):
        raise CohortError(
            f"{file} takes {channels} channels, the model has {len(model.modalities)} ({', '.join(model.modalities)}); "
            f"export it again: mmfusion export {file.parent} --engine onnx"
        )

    def answer(*given: torch.Tensor | None) -> torch.Tensor:
        pairs = zip(("image", "present", "covariates"), given, strict=False)
        feed = {name: value.float().numpy() for name, value in pairs if value is not None and name in names}
        return torch.from_numpy(session.run(["pred"], feed)[0])

    return answer
