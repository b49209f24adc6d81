"""A quarter-width ConvNeXt U-Net DDPM on CIFAR-100: small enough to train and sample on a laptop."""

from hpcvision.config import (
    AugmentConfig,
    ConvNextUNetConfig,
    DataConfig,
    DiffuseConfig,
    EmaConfig,
    OptimConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
)


def config() -> RunConfig:
    """Linear schedule, 10 % label dropout and 1,000 timesteps as in paper A; the rest is assumed."""
    return RunConfig(
        name="cifar100_ddpm_small",
        model=ConvNextUNetConfig(width=0.25),
        data=DataConfig(source="cifar100", augmentation=AugmentConfig(flip=True)),
        task=DiffuseConfig(timesteps=1000, noise_schedule="linear", label_dropout=0.1),
        train=TrainConfig(steps=10_000, global_batch_size=128),
        optim=OptimConfig(optimizer="adamw", learning_rate=1e-3, schedule="cosine", warmup_steps=500),
        ema=EmaConfig(beta=0.998, headline="ema"),
        sample=SampleConfig(sampler="ddim", steps=50, images=64),
    )
