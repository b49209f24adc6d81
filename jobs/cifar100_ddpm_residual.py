"""Paper B's generator: a residual U-Net DDPM on CIFAR-100 with 948,856 parameters (FID 91.78 in the paper)."""

from hpcvision.config import (
    DataConfig,
    DiffuseConfig,
    OptimConfig,
    ResidualUNetConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
)


def config() -> RunConfig:
    """From the paper: 1,000 timesteps, mean squared error of the noise, 50,000 steps, fp16 with a GradScaler.

    Without a GPU, `train.precision=auto` is faster. Assumed, because the paper does not say: linear schedule, batch
    128, AdamW without decay at 2e-4 (Ho et al. 2020 for CIFAR-10), labels never left out. The raw weights are the
    result; their average is kept beside them.
    """
    return RunConfig(
        name="cifar100_ddpm_residual",
        model=ResidualUNetConfig(),
        data=DataConfig(source="cifar100"),
        task=DiffuseConfig(timesteps=1000, noise_schedule="linear", label_dropout=0.0),
        train=TrainConfig(steps=50_000, global_batch_size=128, precision="fp16"),
        optim=OptimConfig(optimizer="adamw", learning_rate=2e-4),
        sample=SampleConfig(sampler="ddpm", steps=1000, images=64),
    )
