"""Training smaller models: with a teacher, with exits along the depth, and with cheaper layers."""

from sparsecore.train.apprentice import Apprentice
from sparsecore.train.distillation import Distillation, linear_schedule
from sparsecore.train.early_exit import EarlyExit, EarlyExitOutput, confidence, exit_loss
from sparsecore.train.exit_policy import exit_shares, fit_thresholds
from sparsecore.train.factors import low_rank, separable
from sparsecore.train.features import FSPFeatures, L2Features, fsp_matrix
from sparsecore.train.replace import Replacement, Replacements, replace_by_low_rank, replace_by_separable
from sparsecore.train.teacher import Teacher
from sparsecore.train.terms import soft_cross_entropy, soft_loss

__all__ = [
    "Apprentice",
    "Distillation",
    "EarlyExit",
    "EarlyExitOutput",
    "FSPFeatures",
    "L2Features",
    "Replacement",
    "Replacements",
    "Teacher",
    "confidence",
    "exit_loss",
    "exit_shares",
    "fit_thresholds",
    "fsp_matrix",
    "linear_schedule",
    "low_rank",
    "replace_by_low_rank",
    "replace_by_separable",
    "separable",
    "soft_cross_entropy",
    "soft_loss",
]
