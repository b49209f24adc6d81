"""Every part of a run as frozen objects; everything else follows from one RunConfig."""

from hpcvision.config.caps import CAPS, Cap, check_parameters, check_steps
from hpcvision.config.data import SOURCE_SHAPES, SYNTHETIC_SHAPES, AugmentConfig, DataConfig
from hpcvision.config.frozen import Frozen
from hpcvision.config.models import (
    MODEL_CONFIGS,
    AddNISTCNNConfig,
    BabyMobileNetConfig,
    CompactNetConfig,
    ConvNextUNetConfig,
    DenoiserConfig,
    DigitSumConfig,
    EDMUNetConfig,
    GroupedCNNConfig,
    ModelConfig,
    ResidualUNetConfig,
)
from hpcvision.config.overrides import apply, parse, unparse
from hpcvision.config.run import (
    CadenceConfig,
    EmaConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    differences,
    flatten,
)
from hpcvision.config.task import ClassifyConfig, DiffuseConfig, SampleConfig, TaskConfig

__all__ = [
    "CAPS",
    "MODEL_CONFIGS",
    "SOURCE_SHAPES",
    "SYNTHETIC_SHAPES",
    "AddNISTCNNConfig",
    "AugmentConfig",
    "BabyMobileNetConfig",
    "CadenceConfig",
    "Cap",
    "ClassifyConfig",
    "CompactNetConfig",
    "ConvNextUNetConfig",
    "DataConfig",
    "DenoiserConfig",
    "DiffuseConfig",
    "DigitSumConfig",
    "EDMUNetConfig",
    "EmaConfig",
    "Frozen",
    "GroupedCNNConfig",
    "ModelConfig",
    "OptimConfig",
    "ResidualUNetConfig",
    "RunConfig",
    "SampleConfig",
    "TaskConfig",
    "TrainConfig",
    "apply",
    "check_parameters",
    "check_steps",
    "differences",
    "flatten",
    "parse",
    "unparse",
]
