"""The classifier that judges what `demo_diffusion` draws.

hpcvision train demo_classifier
"""

from hpcvision.config import BabyMobileNetConfig, DataConfig, OptimConfig, RunConfig, TrainConfig


def config() -> RunConfig:
    """A narrow Baby MobileNet on the same ten kinds of drawn shapes."""
    return RunConfig(
        name="demo_classifier",
        model=BabyMobileNetConfig(width=0.5, image_size=16, num_classes=10, dropout=0.0),
        data=DataConfig(source="synthetic"),
        train=TrainConfig(steps=300, global_batch_size=128, precision="fp32"),
        optim=OptimConfig(optimizer="adamw", learning_rate=5e-3, schedule="one_cycle", warmup_steps=30),
    )
