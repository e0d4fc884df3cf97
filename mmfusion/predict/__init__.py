"""The one way from a trained network to probabilities: checked batches, calibrated answers, one prediction file."""

from mmfusion.predict.batches import (
    CaseImages,
    Inputs,
    PrepareFusionBatch,
    check_batch,
    dataset_items,
    inference_items,
    inputs_of,
    run_cases,
)
from mmfusion.predict.engines import export_model, load_engine, module_engine
from mmfusion.predict.ensemble import fold_runs, joint_model, load_members, member_folders
from mmfusion.predict.model import (
    Model,
    load_model,
    load_weights,
    model_folder,
    read_model,
    save_model,
    save_tensors,
    weights_hash,
)
from mmfusion.predict.one_case import CasePrediction, predict_case
from mmfusion.predict.predictions import (
    PredictionsHandler,
    infer,
    predict_rows,
    prediction_rows,
    prior_shift,
    probabilities,
    uncertainty,
    write_predictions,
)
from mmfusion.predict.preparing import prepare_for
from mmfusion.predict.run import predict_manifest

__all__ = [
    "Model",
    "read_model",
    "load_model",
    "load_weights",
    "model_folder",
    "save_model",
    "save_tensors",
    "weights_hash",
    "prepare_for",
    "load_engine",
    "export_model",
    "predict_manifest",
    "member_folders",
    "load_members",
    "joint_model",
    "fold_runs",
    "dataset_items",
    "inference_items",
    "Inputs",
    "inputs_of",
    "run_cases",
    "CaseImages",
    "module_engine",
    "predict_rows",
    "check_batch",
    "PrepareFusionBatch",
    "predict_case",
    "CasePrediction",
    "infer",
    "prior_shift",
    "probabilities",
    "uncertainty",
    "prediction_rows",
    "PredictionsHandler",
    "write_predictions",
]
