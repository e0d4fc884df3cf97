"""Networks (``torch.nn`` only): encoders, fusion operators and strategies, assembled by name."""

from mmfusion.networks.build import build, combinations
from mmfusion.networks.export import export_onnx, export_program
from mmfusion.networks.inference import for_inference
from mmfusion.networks.m3t import MultiPlaneSliceEncoder
from mmfusion.networks.medicalnet import load_medicalnet
from mmfusion.networks.network import FusionNetwork, FusionOutput
from mmfusion.networks.systems import m3t
from mmfusion.networks.uncertainty import Uncertainty, predict_with_uncertainty

__all__ = [
    "build",
    "combinations",
    "FusionNetwork",
    "FusionOutput",
    "MultiPlaneSliceEncoder",
    "Uncertainty",
    "export_onnx",
    "export_program",
    "for_inference",
    "load_medicalnet",
    "m3t",
    "predict_with_uncertainty",
]
