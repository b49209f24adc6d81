"""A generator that is worth looking at after a minute: ten kinds of drawn shapes, 16x16 pixels.

hpcvision train demo_diffusion
"""

from hpcvision.config import (
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
    """EDM as in `cifar100_edm`, with a network of a tenth of the size."""
    return RunConfig(
        name="demo_diffusion",
        model=EDMUNetConfig(width=0.25, image_size=16, num_classes=10, passes=1),
        data=DataConfig(source="synthetic"),
        task=DiffuseConfig(noise_schedule="edm", prediction="edm", label_dropout=0.1),
        train=TrainConfig(steps=1_000, global_batch_size=64, precision="fp32"),
        optim=OptimConfig(optimizer="adamw", learning_rate=3e-3, betas=(0.9, 0.99), schedule="cosine", warmup_steps=50),
        ema=EmaConfig(beta=0.99, headline="ema"),
        sample=SampleConfig(sampler="heun", steps=21, images=40, interpolation_pairs=4),
    )
