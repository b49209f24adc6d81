"""Paper B's AddNIST network with batch 64 and Adam, TF32 off; every colour channel is moved on its own."""

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
    """The paper gives network, steps and TF32 off; augmentation, batch size and rates are assumed.

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
            optimizer="adamw", learning_rate=4e-3, weight_decay=1e-2, schedule="one_cycle", warmup_steps=1000
        ),
    )
