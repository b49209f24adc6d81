"""One frozen object that says everything about a run, and the fingerprint that is its identity."""

import functools
import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from hpcvision.config.caps import check_steps
from hpcvision.config.data import SOURCE_SHAPES, SYNTHETIC_SHAPES, DataConfig
from hpcvision.config.frozen import Frozen
from hpcvision.config.models import DenoiserConfig, ModelConfig
from hpcvision.config.task import ClassifyConfig, SampleConfig, TaskConfig, check_sampling
from hpcvision.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]
BatchNorm = Literal["per_process", "synchronized"]
Weights = Literal["raw", "ema"]
DecayRate = Annotated[float, Field(ge=0, lt=1)]

# Whose layers are made in the order in which they run, so that the first and the last, which are not Muon's, are known.
MUON_MODELS = ("addnist_cnn", "baby_mobilenet", "compact_net")

# Fields that came after runs had been made, with the value that is what those runs did. At that value a field is left
# out of the fingerprint, so that a new field renames no run of the past.
ADDED_LATER = {
    ("train", "batch_norm"): "per_process",
    ("train", "cuda_graph"): True,
    ("optim", "muon_learning_rate"): 0.02,
    ("optim", "muon_momentum"): 0.95,
    ("optim", "muon_weight_decay"): 0.1,
    ("task", "cutmix_probability"): 0.0,
    ("task", "prediction"): "epsilon",
    ("task", "min_snr_gamma"): None,
    ("task", "sigma_data"): 0.5,
    ("task", "log_sigma_mean"): -1.2,
    ("task", "log_sigma_deviation"): 1.2,
    ("sample", "eta"): 0.0,
    ("sample", "variance"): "small",
    ("sample", "guidance_interval"): None,
    ("data", "augmentation", "elastic_pixels"): 0.0,
}


class TrainConfig(Frozen):
    """How long, how many images a step, and in which arithmetic."""

    steps: int = Field(10_000, ge=1)
    """Optimisation steps; one that the GradScaler skips counts."""
    global_batch_size: int = Field(512, ge=1)
    """Images per optimisation step over all processes together."""
    precision: Literal["auto"] | Precision = "auto"
    """Autocast type; weights and optimiser state are always fp32. fp16 uses a GradScaler.

    auto: bf16 where all processes of the first stay compute it natively, else fp32; later stays keep to that choice.
    """
    allow_tf32: bool = False
    """TensorFloat-32 in matrix products and convolutions on Ampere and later GPUs."""
    channels_last: bool = True
    """Keep images and filters with the channel as the fastest dimension."""
    batch_norm: BatchNorm = "per_process"
    """Statistics of a training batch: each process's own share of it, or the whole global batch.

    synchronized gives the same result on any number of processes and costs two more exchanges per layer and pass.
    """
    compile: bool = False
    """torch.compile the model."""
    cuda_graph: bool = True
    """CUDA: record one optimisation step and replay it, instead of launching its operations one by one."""
    deterministic: bool = False
    """Only deterministic kernels on CUDA; a CPU run is deterministic anyway."""

    def local_batch_size(self, processes: int) -> int:
        """Images per step of each process; raises UserError when the batch cannot be split evenly."""
        if self.global_batch_size % processes:
            raise UserError(
                f"train.global_batch_size={self.global_batch_size} cannot be split over {processes} processes; "
                f"choose a multiple of {processes}"
            )
        return self.global_batch_size // processes


class OptimConfig(Frozen):
    """The optimiser and its learning rate over time."""

    optimizer: Literal["sgd", "adamw", "muon"] = "adamw"
    """adamw with weight_decay=0 is Adam; muon trains the weights between first and last layer, sgd the rest."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD: momentum."""
    nesterov: bool = True
    """SGD: Nesterov's form of momentum."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """AdamW: decay rates of the first and second moment."""
    muon_learning_rate: float = Field(0.02, gt=0)
    """Muon: its peak learning rate, on the same schedule; `learning_rate` and what else sgd has are for the others."""
    muon_momentum: float = Field(0.95, ge=0, lt=1)
    """Muon: momentum, in Nesterov's form."""
    muon_weight_decay: float = Field(0.1, ge=0)
    """Muon: share of its weights that a step takes off, times its learning rate; `weight_decay` is for the others."""
    weight_decay: float = Field(0.0, ge=0)
    """On convolution and linear weights only, never on biases or normalisation."""
    schedule: Literal["constant", "step_decay", "cosine", "one_cycle"] = "constant"
    """step_decay: learning_rate * decay_factor^k (paper A); one_cycle: linear rise, then linear fall."""
    decay_factor: float = Field(0.6, gt=0, le=1)
    """step_decay: factor at every decay."""
    decay_every: int = Field(1000, ge=1)
    """step_decay: steps between decays."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear rise to the peak."""
    final_learning_rate_fraction: float = Field(0.0, ge=0, le=1)
    """cosine, one_cycle: learning rate at the last step as a fraction of the peak."""
    gradient_clip: float | None = Field(None, gt=0)
    """Largest allowed gradient norm; None clips nothing."""


class EmaConfig(Frozen):
    """The exponential moving average of the weights, kept beside the raw ones; both are evaluated and archived."""

    beta: float = Field(0.998, ge=0, lt=1)
    """Share of the old average that is kept at every update; 0 keeps no average at all."""
    every: int = Field(1, ge=1)
    """Steps between updates."""
    warmup: bool = True
    """Use at most (1 + n) / (10 + n) at update n, so that the first weights are forgotten quickly."""
    headline: Weights = "raw"
    """Which of the two is the run's result; chosen here, before training, never by looking at the scores."""


class CadenceConfig(Frozen):
    """How often things are written; nothing here can change a result, so it is not part of the fingerprint."""

    log_every: int = Field(50, ge=1)
    """Steps between points of the training curve (each is the mean since the last)."""
    evaluate_every: int = Field(500, ge=1)
    """Steps between evaluations on the validation split."""
    checkpoint_every: int = Field(500, ge=1)
    """Steps between checkpoints."""


class RunConfig(Frozen):
    """Everything about a run that is science; where it runs is a Profile."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]{0,79}$")
    """Short name, the first part of the run's folder."""
    seed: int = Field(0, ge=0)
    """Seed of every random stream."""
    track: Literal["capped", "auxiliary"] = "capped"
    """auxiliary runs serve others, may exceed the caps, and enter no claim."""
    model: ModelConfig
    data: DataConfig = DataConfig()
    task: TaskConfig = ClassifyConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    ema: EmaConfig = EmaConfig()
    sample: SampleConfig = SampleConfig()
    cadence: CadenceConfig = CadenceConfig()

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        if self.track == "capped":
            check_steps(self.task.kind, self.train.steps)
        if isinstance(self.model, DenoiserConfig) != (self.task.kind == "diffuse"):
            raise ValueError(f"model.kind={self.model.kind} cannot do task.kind={self.task.kind}")
        shape = (self.model.image_size, self.model.num_classes)
        wanted = SOURCE_SHAPES.get(self.data.source)
        if wanted and shape != wanted:
            raise ValueError(
                f"data.source={self.data.source} has {wanted[0]}x{wanted[0]} images of {wanted[1]} classes, but the "
                f"model reads {shape[0]}x{shape[0]} of {shape[1]}; set model.image_size and model.num_classes"
            )
        if self.data.source == "synthetic" and shape not in SYNTHETIC_SHAPES:
            raise ValueError(f"data.source=synthetic draws {SYNTHETIC_SHAPES} (side, classes), not {shape}")
        if self.data.augmentation.flip and shape == SOURCE_SHAPES["addnist"]:
            raise ValueError("data.augmentation.flip=true would mirror digits; AddNIST gets no flip")
        if self.task.kind == "classify" and self.task.cutmix_probability:
            if shape == SOURCE_SHAPES["addnist"]:
                raise ValueError("task.cutmix_probability would mix digits, whose sum is then another; AddNIST gets 0")
            if self.train.global_batch_size == 1:
                raise ValueError(
                    "task.cutmix_probability needs train.global_batch_size of 2 or more, to mix two images"
                )
        if self.optim.optimizer == "muon" and self.model.kind not in MUON_MODELS:
            raise ValueError(
                f"optim.optimizer=muon is not for model.kind={self.model.kind}, only for {', '.join(MUON_MODELS)}; "
                "choose sgd or adamw"
            )
        if self.task.kind == "diffuse":
            check_sampling(self.task, self.sample)
        if self.ema.headline == "ema" and self.ema.beta == 0:
            raise ValueError("ema.headline=ema needs ema.beta above 0")
        return self

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of the SHA-256 of the configuration without `name`, `cadence` and `ADDED_LATER`."""
        science = self.model_dump(mode="json", exclude={"name", "cadence"})
        for (*parts, field), value in ADDED_LATER.items():
            part = functools.reduce(dict.__getitem__, parts, science)
            if field in part and part[field] == value:
                del part[field]
        return hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def run_name(self) -> str:
        """`name`, with the word `auxiliary` in it when the run may enter no claim."""
        if self.track == "auxiliary" and "auxiliary" not in self.name:
            return f"{self.name}_auxiliary"
        return self.name

    @property
    def folder_name(self) -> str:
        """Name of the run's folder: `<name>-<fingerprint>`."""
        return f"{self.run_name}-{self.fingerprint}"


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"optim.learning_rate": 0.1, ...}` of a nested dump; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(one: RunConfig, other: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two configurations differ, with both values; a key that one lacks reads None there."""
    a, b = (flatten(config.model_dump(mode="json")) for config in (one, other))
    return {key: (a.get(key), b.get(key)) for key in sorted(a | b) if a.get(key) != b.get(key)}
