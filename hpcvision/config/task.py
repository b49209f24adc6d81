"""What a run learns, and what a generator draws when it is finished."""

from typing import Annotated, Literal

from pydantic import Field

from hpcvision.config.frozen import Frozen

Prediction = Literal["epsilon", "x0", "v", "edm"]
Variance = Literal["small", "large", "analytic"]


class ClassifyConfig(Frozen):
    """Predict the class of an image."""

    kind: Literal["classify"] = "classify"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Probability mass spread evenly over all classes."""
    cutmix_probability: float = Field(0.0, ge=0, le=1)
    """Share of the training images in which a rectangle and as much of the label are another image's (CutMix)."""


class DiffuseConfig(Frozen):
    """Find the noise in a noised image, given its class (Ho et al. 2020)."""

    kind: Literal["diffuse"] = "diffuse"
    timesteps: int = Field(1000, ge=2)
    """Number of noise levels of the forward process."""
    noise_schedule: Literal["linear", "cosine", "edm"] = "linear"
    """How the noise grows with the timestep; edm: in equal factors, and training sees its timesteps log-normally."""
    log_sigma_mean: float = -1.2
    """edm: mean of the logarithm of the noise's deviation in training (Karras et al. 2022, table 1)."""
    log_sigma_deviation: float = Field(1.2, gt=0)
    """edm: its standard deviation."""
    prediction: Prediction = "epsilon"
    """What the network says: the noise, the clean image, the velocity v between them (Salimans & Ho 2022), or EDM's
    mixture of noise and image, which has unit variance at every noise level (Karras et al. 2022, section 5)."""
    sigma_data: float = Field(0.5, gt=0)
    """Prediction edm: standard deviation of the images' values in [-1, 1]."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Weight the squared error by timestep as min-SNR does (Hang et al. 2023, who take 5); None: no weight."""
    label_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the training images shown without their label (classifier-free guidance)."""


TaskConfig = Annotated[ClassifyConfig | DiffuseConfig, Field(discriminator="kind")]
TASK_CONFIGS = (ClassifyConfig, DiffuseConfig)


class SampleConfig(Frozen):
    """What a generator draws when it is finished; ignored by classifiers."""

    sampler: Literal["ddim", "ddpm", "heun", "dpm_solver_2m"] = "ddim"
    """ddim, heun and dpm_solver_2m are deterministic, the last two of second order; ddpm is ancestral."""
    steps: int = Field(50, ge=1)
    """Network evaluations per image."""
    eta: float = Field(0.0, ge=0, le=1)
    """ddim: how much noise is added at every step, from none to as much as ddpm adds."""
    variance: Variance = "small"
    """ddpm: of the added noise; beta tilde or beta of Ho et al. 2020, or estimated (analytic, Bao et al. 2022)."""
    guidance_scale: float = Field(1.0, ge=0)
    """Classifier-free guidance; 1 is the plain conditional model."""
    guidance_interval: tuple[float, float] | None = None
    """Guide only where sigma, noise over signal, is between these two (Kynkaanniemi et al. 2024); None: everywhere."""
    images: int = Field(64, ge=0)
    """Random samples kept in the archive."""
    interpolation_pairs: int = Field(8, ge=0)
    """Pairs of classes between which is interpolated."""
    interpolation_points: int = Field(10, ge=2)
    """Images from one end of a pair to the other, ends included."""


def check_sampling(task: DiffuseConfig, sample: SampleConfig) -> None:
    """Raise ValueError when a model of this task cannot be sampled in this way."""
    if sample.steps > task.timesteps:
        raise ValueError(f"sample.steps={sample.steps} is more than task.timesteps={task.timesteps}")
    if sample.eta and sample.sampler != "ddim":
        raise ValueError(f"sample.eta={sample.eta} is for sample.sampler=ddim, not {sample.sampler}")
    if sample.variance != "small" and sample.sampler != "ddpm":
        raise ValueError(f"sample.variance={sample.variance} is for sample.sampler=ddpm, not {sample.sampler}")
    if task.label_dropout == 0 and sample.guidance_scale != 1:
        raise ValueError(
            f"sample.guidance_scale={sample.guidance_scale} needs a model that has also seen images without "
            "their label; set task.label_dropout above 0 (0.1 is usual), or sample.guidance_scale=1"
        )
    if sample.guidance_interval is not None:
        low, high = sample.guidance_interval
        if not 0 <= low < high:
            raise ValueError(f"sample.guidance_interval=[{low}, {high}] must rise, from 0 or more")
        if sample.guidance_scale == 1:
            raise ValueError("sample.guidance_interval needs sample.guidance_scale other than 1, which guides nothing")
