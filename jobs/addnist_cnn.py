"""Paper B's AddNIST network, TF32 off; batch 64, Adam, and every colour channel moved on its own are assumed."""

from hpcvision.config import (
    AddNISTCNNConfig,
    AugmentConfig,
    ClassifyConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)


def config() -> RunConfig:
    """The paper gives network, steps and TF32 off; optimiser, augmentation, batch size and rates are assumed.

    Its training accuracy (67.9 %) lies below its test accuracy (74.9 %), so some augmentation it must have had.
    """
    return RunConfig(
        name="addnist_cnn",
        model=AddNISTCNNConfig(),
        data=DataConfig(
            source="addnist",
            augmentation=AugmentConfig(per_channel=True, rotation_degrees=10, scale=0.1, shift_pixels=1.7),
        ),
        task=ClassifyConfig(),
        train=TrainConfig(steps=10_000, global_batch_size=64, precision="fp32", allow_tf32=False),
        optim=OptimConfig(
            optimizer="adamw", learning_rate=4e-3, weight_decay=0, schedule="one_cycle", warmup_steps=1000
        ),
    )
