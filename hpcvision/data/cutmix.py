"""CutMix: part of an image comes from another image, and as much of the label (Yun et al. 2019, section 3.1).

Every image of a batch draws for itself, and the other image is the next of the global batch.
"""

import torch
from torch import Tensor

# Of an image: mixed or not, share that stays, centre of the rectangle.
UNIFORMS_PER_IMAGE = 4


def rectangles(uniform: Tensor, probability: float, image_size: int) -> Tensor:
    """(B, 4) int64: top, bottom, left, right of what is replaced in each image, ends excluded; all 0 where nothing is.

    The share that stays is uniform in 0..1, the paper's Beta(1, 1), before the rectangle is cut at the image's border.
    uniform: (B, 4) in [0, 1).
    """
    mixed, share, *centre = uniform.unbind(1)
    half = (0.5 * image_size * (1 - share).sqrt()).long()
    sides = []
    for middle in ((along * image_size).long() for along in centre):
        sides += [(middle - half).clamp(min=0), (middle + half).clamp(max=image_size)]
    return torch.stack(sides, dim=1) * (mixed < probability)[:, None]


def cutmix(images: Tensor, labels: Tensor, replaced: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """(B, C, S, S) images like `images` and (B, num_classes) float32 probabilities of the classes, by area.

    images, labels: (B + 1, C, S, S) and (B + 1,) int64, of which the rectangle of image k is taken from image k + 1.
    replaced: (B, 4), of `rectangles`.
    """
    top, bottom, left, right = (sides[:, None] for sides in replaced.unbind(1))
    along = torch.arange(images.shape[-1], device=images.device)
    rows, columns = (along >= top) & (along < bottom), (along >= left) & (along < right)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    share = inside.float().mean((1, 2, 3))[:, None]
    # Not one_hot, which looks at the labels first and so makes the host wait for the device.
    classes = (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()
    return torch.where(inside, images[1:], images[:-1]), (1 - share) * classes[:-1] + share * classes[1:]
