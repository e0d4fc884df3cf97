"""The one way from a trained network to probabilities: checked batches, corrected priors, one prediction file."""

from mmfusion.predict.batches import PrepareFusionBatch, check_batch, dataset_items
from mmfusion.predict.model import Model, load_model, prepare_for, save_model
from mmfusion.predict.predictions import PredictionsHandler, infer, probabilities, read_predictions, write_predictions

__all__ = [
    "Model",
    "load_model",
    "save_model",
    "prepare_for",
    "dataset_items",
    "check_batch",
    "PrepareFusionBatch",
    "infer",
    "probabilities",
    "PredictionsHandler",
    "write_predictions",
    "read_predictions",
]
