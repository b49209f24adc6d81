"""Our Fréchet distance against scipy's matrix square root: `python benchmarks/frechet.py`.

Both get the same two covariances of features with a falling spectrum. scipy takes the square root of their product, as
pytorch-fid does; ours the eigenvalues of a symmetric product, with the root of the reference made before, as when many
sets are held to one reference. The row `root of the reference` shows what that costs once. The cases take turns.
"""

import statistics

import measuring
import scipy.linalg
import torch

from hpcvision.metrics.frechet import Moments, frechet_distance, moments
from hpcvision.seeding import generator

OURS, ROOT, SCIPY = "ours, cached root", "root of the reference", "scipy.linalg.sqrtm"


def scipys(a: Moments, b: Moments) -> float:
    """As pytorch-fid computes it."""
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    return float((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()) - 2 * root.trace()


def main() -> None:
    parser = measuring.parser(__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=2048, help="dimensions of a feature")
    parser.add_argument("--images", type=int, default=10_000, help="images of each set")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every case; the median counts")
    arguments = parser.parse_args()

    stream = generator(0, "benchmark")
    deviations = torch.arange(1, arguments.size + 1).double() ** -0.5
    shape = (arguments.images, arguments.size)
    drawn, reference = (
        moments(torch.randn(shape, generator=stream, dtype=torch.float64) * deviations + shift) for shift in (0.1, 0.0)
    )
    reference.root  # noqa: B018 (made once, before the turns)
    found: dict[str, float] = {}
    seconds = measuring.interleave(
        {
            OURS: lambda: found.__setitem__(OURS, frechet_distance(drawn, reference)),
            ROOT: lambda: Moments(reference.mean, reference.covariance, reference.count).root,
            SCIPY: lambda: found.__setitem__(SCIPY, scipys(drawn, reference)),
        },
        rounds=arguments.rounds,
        warm_up=0,
    )
    measuring.report(
        f"Fréchet distance of {arguments.size:,} dimensions",
        [
            {"case": name, "seconds": statistics.median(times), "distance": found.get(name, "")}
            for name, times in seconds.items()
        ],
        ratios={"ratio_scipy": measuring.ratio(seconds[SCIPY], seconds[OURS])},
        json_file=arguments.json,
        relative_difference=abs(found[OURS] / found[SCIPY] - 1),
    )
    print(f"relative difference {abs(found[OURS] / found[SCIPY] - 1):.1e}")


if __name__ == "__main__":
    main()
