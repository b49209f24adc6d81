"""The synthetic objects are worth training on: a small network learns them in 500 steps, and never to the full."""

import pytest
import torch

from hpcvision import data
from hpcvision.config.data import DataConfig
from hpcvision.config.models import BabyMobileNetConfig
from hpcvision.data.order import batch_indices
from hpcvision.models import build_model

SHAPE = {"image_size": 32, "num_classes": 100}


@pytest.mark.long  # more than six minutes on one core without AVX-512
def test_baby_mobilenet_passes_sixty_percent_in_500_steps_and_stays_below_ninety_nine():
    config = DataConfig(source="synthetic")
    train, test = (data.load(config, split, **SHAPE) for split in ("train", "test"))
    mean, deviation = (torch.tensor(row).view(3, 1, 1) for row in data.statistics(config, **SHAPE))

    def normalise(images):
        return ((images.float() / 255 - mean) / deviation).to(memory_format=torch.channels_last)

    torch.manual_seed(0)
    model = build_model(BabyMobileNetConfig()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=500)
    for step in range(500):
        indices = batch_indices(0, step, 128, len(train.labels))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(normalise(train.images[indices]))
        loss = torch.nn.functional.cross_entropy(logits.float(), train.labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        predictions = torch.cat([model(normalise(images)).argmax(1) for images in test.images.split(500)])
    accuracy = (predictions == test.labels).double().mean().item()
    # Measured: 0.807; 5 % wrong labels put 99 % out of anyone's reach.
    assert 0.60 < accuracy < 0.99
