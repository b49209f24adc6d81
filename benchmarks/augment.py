"""Images per second of each augmentation alone and of all together: `python benchmarks/augment.py --threads 1`.

Drawing the parameters is included. The cases take turns, one batch each.
"""

from collections.abc import Callable
from functools import partial
from statistics import median

import measuring
import torch

from hpcvision.config.data import AugmentConfig
from hpcvision.data.augment import augment, draw
from hpcvision.seeding import generator

ALONE = {
    "nothing": AugmentConfig(),
    "crop": AugmentConfig(crop_padding=4),
    "flip": AugmentConfig(flip=True),
    "rotation": AugmentConfig(rotation_degrees=15),
    "affine": AugmentConfig(rotation_degrees=15, scale=0.1, shift_pixels=2, shear=0.1),
    "affine per channel": AugmentConfig(rotation_degrees=15, scale=0.1, shift_pixels=2, shear=0.1, per_channel=True),
    "colour": AugmentConfig(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1),
    "blur": AugmentConfig(blur_probability=0.3),
    "erasing": AugmentConfig(erasing_probability=0.3),
}
ALL = AugmentConfig.model_validate(
    {key: value for config in ALONE.values() for key, value in config.model_dump(exclude_defaults=True).items()}
)
CASES = ALONE | {"all, one grid": ALL.model_copy(update={"per_channel": False}), "all, per channel": ALL}


def one_batch(images: torch.Tensor, config: AugmentConfig, stream: torch.Generator) -> None:
    """Draw the parameters of a batch and apply them."""
    parameters = draw(config, len(images), images.shape[-1], 3, stream)
    augment(images, parameters, config, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    if images.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    parser = measuring.parser(__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=512, help="images at once")
    parser.add_argument("--rounds", type=int, default=20, help="timed batches of every case; the median counts")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    stream = generator(0, "benchmark", device=arguments.device)
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=stream, device=arguments.device)
    cases: dict[str, Callable[[], None]] = {
        name: partial(one_batch, images, config, stream) for name, config in CASES.items()
    }
    seconds = measuring.interleave(cases, rounds=arguments.rounds, warm_up=3)
    rows = [
        {
            "case": name,
            "images_per_second": arguments.batch / median(values),
            "milliseconds_per_batch": 1000 * median(values),
        }
        for name, values in seconds.items()
    ]
    settings = {key: value for key, value in vars(arguments).items() if key != "json"}
    title = f"augmentation of {arguments.batch} images, {arguments.threads} thread(s), {arguments.device}"
    measuring.report(title, rows, ratios={}, json_file=arguments.json, settings=settings, seconds=seconds)


if __name__ == "__main__":
    main()
