"""From a cohort folder to a run folder: who is in which part, the training step, and what is written on the way."""

from mmfusion.training.checkpoint import Checkpoints
from mmfusion.training.cross_validation import evaluate_folds
from mmfusion.training.distributed import FollowFirst, connect, disconnect, is_first, own_device, share_of_step
from mmfusion.training.engine import (
    EarlyStop,
    History,
    SettleStatistics,
    TrainingStep,
    ValidationScore,
    autocast,
    start,
    total_loss,
    update,
)
from mmfusion.training.evaluate import evaluate
from mmfusion.training.folds import out_of_fold
from mmfusion.training.metrics import single_runs, write_metrics
from mmfusion.training.results import finish, voices
from mmfusion.training.run import Run
from mmfusion.training.study import Study, evaluation_items, open_study
from mmfusion.training.tracking import tracked_name, tracked_options, trackers
from mmfusion.training.train import (
    RunHandlers,
    make_evaluator,
    make_optimizer,
    make_scheduler,
    make_trainer,
    settling_loader,
    train,
    training_loader,
    training_transform,
    validation_loader,
    validation_transform,
)

__all__ = [
    "train",
    "evaluate",
    "Run",
    "training_transform",
    "validation_transform",
    "training_loader",
    "validation_loader",
    "settling_loader",
    "make_optimizer",
    "make_scheduler",
    "make_evaluator",
    "make_trainer",
    "RunHandlers",
    "start",
    "Study",
    "open_study",
    "evaluation_items",
    "TrainingStep",
    "update",
    "total_loss",
    "SettleStatistics",
    "autocast",
    "ValidationScore",
    "History",
    "Checkpoints",
    "EarlyStop",
    "trackers",
    "tracked_options",
    "tracked_name",
    "connect",
    "disconnect",
    "own_device",
    "is_first",
    "share_of_step",
    "FollowFirst",
    "finish",
    "voices",
    "out_of_fold",
    "write_metrics",
    "evaluate_folds",
    "single_runs",
]
