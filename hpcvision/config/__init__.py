"""Every part of a run as frozen objects; everything else follows from one RunConfig."""

from hpcvision.config.caps import CAPS, Cap, check_parameters, check_steps
from hpcvision.config.frozen import Frozen
from hpcvision.config.models import (
    MODEL_CONFIGS,
    AddNISTCNNConfig,
    BabyMobileNetConfig,
    ConvNextUNetConfig,
    ModelConfig,
)
from hpcvision.config.overrides import apply, parse
from hpcvision.config.run import (
    SOURCE_SHAPES,
    AugmentConfig,
    CadenceConfig,
    ClassifyConfig,
    DataConfig,
    DiffuseConfig,
    EmaConfig,
    OptimConfig,
    RunConfig,
    SampleConfig,
    TaskConfig,
    TrainConfig,
    differences,
    flatten,
)

__all__ = [
    "CAPS",
    "MODEL_CONFIGS",
    "SOURCE_SHAPES",
    "AddNISTCNNConfig",
    "AugmentConfig",
    "BabyMobileNetConfig",
    "CadenceConfig",
    "Cap",
    "ClassifyConfig",
    "ConvNextUNetConfig",
    "DataConfig",
    "DiffuseConfig",
    "EmaConfig",
    "Frozen",
    "ModelConfig",
    "OptimConfig",
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
]
