"""Baby MobileNet on CIFAR-100 with paper A's recipe: batch 512, seven augmentation steps, step decay, dropout.

Test accuracy 61.90 % (Wilson 95 %: 60.94 to 62.85), 0.619 ± 0.021 over batches; 1 seed, raw weights of step 10,000,
trained on 45,000 images; 2 CPU cores (Intel Xeon with AMX, bf16), torch 2.15.0. Paper A: 56.3 %, 0.563 ± 0.016.

    hpcvision submit cifar100_baby_mobilenet --cluster local --processes 2 --wait
"""

from hpcvision.config import (
    AugmentConfig,
    BabyMobileNetConfig,
    ClassifyConfig,
    DataConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)


def config() -> RunConfig:
    """The paper names the steps but not their strengths, nor the optimiser and its rates: those here are assumed."""
    return RunConfig(
        name="cifar100_baby_mobilenet",
        model=BabyMobileNetConfig(dropout=0.1),
        data=DataConfig(
            source="cifar100",
            augmentation=AugmentConfig(
                crop_padding=4,
                padding_mode="reflection",
                flip=True,
                rotation_degrees=10,
                brightness=0.2,
                contrast=0.2,
                saturation=0.2,
                hue=0.02,
                blur_probability=0.1,
                blur_sigma=(0.1, 1.0),
                erasing_probability=0.1,
                erasing_area=(0.02, 0.2),
            ),
        ),
        task=ClassifyConfig(),
        train=TrainConfig(steps=10_000, global_batch_size=512),
        optim=OptimConfig(
            optimizer="sgd",
            learning_rate=0.3,
            momentum=0.9,
            weight_decay=3e-4,
            schedule="step_decay",
            decay_factor=0.6,
            decay_every=1000,
            warmup_steps=200,
        ),
    )
