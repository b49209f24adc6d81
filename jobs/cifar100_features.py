"""The auxiliary classifier whose features measure generated images: a wide Baby MobileNet on CIFAR-100.

hpcvision train cifar100_features
"""

from hpcvision.config import (
    AugmentConfig,
    BabyMobileNetConfig,
    ClassifyConfig,
    DataConfig,
    EmaConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)


def config() -> RunConfig:
    """205,510 parameters, so auxiliary: it enters no claim. 180 features, trained on the training split alone."""
    return RunConfig(
        name="cifar100_features",
        track="auxiliary",
        model=BabyMobileNetConfig(width=1.5, dropout=0.0),
        data=DataConfig(
            source="cifar100", augmentation=AugmentConfig(crop_padding=4, padding_mode="reflection", flip=True)
        ),
        task=ClassifyConfig(label_smoothing=0.05),
        train=TrainConfig(steps=4_000, global_batch_size=512),
        optim=OptimConfig(
            optimizer="sgd", learning_rate=0.4, weight_decay=5e-4, schedule="one_cycle", warmup_steps=400
        ),
        ema=EmaConfig(beta=0.998, headline="ema"),
    )
