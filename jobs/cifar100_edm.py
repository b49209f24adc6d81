"""The generator made to beat the papers' two under their cap: `edm_unet`, 987,459 parameters, trained as EDM is.

hpcvision train cifar100_edm
"""

from hpcvision.config import (
    AugmentConfig,
    DataConfig,
    DiffuseConfig,
    EDMUNetConfig,
    EmaConfig,
    OptimConfig,
    RunConfig,
    SampleConfig,
    TrainConfig,
)


def config() -> RunConfig:
    """Noise levels, preconditioning and Heun's sampler of Karras et al. 2022; batch, rates and average are assumed."""
    return RunConfig(
        name="cifar100_edm",
        model=EDMUNetConfig(),
        data=DataConfig(source="cifar100", augmentation=AugmentConfig(flip=True)),
        task=DiffuseConfig(noise_schedule="edm", prediction="edm", label_dropout=0.1),
        train=TrainConfig(steps=50_000, global_batch_size=512),
        optim=OptimConfig(
            optimizer="adamw", learning_rate=1e-3, betas=(0.9, 0.99), schedule="cosine", warmup_steps=1000
        ),
        ema=EmaConfig(beta=0.9995, headline="ema"),
        sample=SampleConfig(sampler="heun", steps=35, images=64),
    )
