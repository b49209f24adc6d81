"""What torch-fidelity computes: the Inception features of images, and the scores that are defined on features."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from hpcvision.errors import UserError
from hpcvision.rundir import atomic_write

# torch-fidelity is imported where it is used: that takes a second and brings torchvision.

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
"""The weights of Heusel et al. 2017, converted by pytorch-fid, which names the same bytes pt_inception-...-6726825d."""
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the whole file; only features of these weights make a Fréchet distance an FID."""

LARGEST_SEED = 2**32 - 1
"""Of numpy's RandomState, with which torch-fidelity draws."""


def fetch_inception(folder: Path, given: Path | None = None) -> Path:
    """The official weights in `folder`: copied from the file `given`, else downloaded when they are not there whole.

    Raises UserError when that fails, or when `given` is another file.
    """
    target = folder / INCEPTION_FILE
    if given is not None:
        content = _content(given)
        found = hashlib.sha256(content).hexdigest()
        if found != INCEPTION_SHA256:
            raise UserError(
                f"{given} is not {INCEPTION_FILE}: its SHA-256 is {found[:16]}..., not {INCEPTION_SHA256[:16]}...; "
                "to score with it all the same, give it to `hpcvision evaluate` as --extractor"
            )
        try:
            with atomic_write(target) as file:
                file.write(content)
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}; see $HPCVISION_DATA") from None
    elif not target.exists() or hashlib.sha256(_content(target)).hexdigest() != INCEPTION_SHA256:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(target), hash_prefix=INCEPTION_SHA256)
        except (OSError, RuntimeError) as error:  # no way there, a full disk; or another hash
            words = str(error).replace("\n", " ")
            raise UserError(
                f"cannot fetch {INCEPTION_URL}: {words}; run it where there is internet, or bring the file here and "
                "stage it with `hpcvision data fetch inception --weights FILE`"
            ) from None
    return target


class InceptionExtractor:
    """The Inception v3 of the FID, with the weights of a file on this machine; it never looks for them elsewhere.

    name: "inception_v3" for the official file, else "inception_" and the first 8 hex digits of `sha256`.
    frechet_name: what the Fréchet distance of its features may be called, "fid" for the official file alone.
    sha256: of the file, as hex digits. is_official: whether that is `INCEPTION_SHA256`.
    resize: how images of any size come to the 299 x 299 of the network, in words.
    """

    classes: int | None = None
    size = 2048
    resize = "bilinear to 299 x 299 as in TensorFlow 1: no antialiasing, no half-pixel centres, corners not aligned"

    def __init__(self, weights: Path, device: torch.device | str) -> None:
        """Raises UserError when there is no such file or it does not hold the weights of this network."""
        content = _content(weights)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.is_official = self.sha256 == INCEPTION_SHA256
        self.name = "inception_v3" if self.is_official else f"inception_{self.sha256[:8]}"
        self.frechet_name = "fid" if self.is_official else f"frechet_inception_{self.sha256[:8]}"
        self.device = torch.device(device)
        self._network = _network(weights, content).to(self.device)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 2048) of the last pooling layer, at least 0, and logits (B, 1008) without the bias; float32.

        images: (B, 3, H, W) uint8 on any device; else UserError. Both results are on `device` and without gradient,
        and are those that torch-fidelity takes for the FID and KID, and for the Inception score.
        """
        if images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise UserError(
                f"images are {tuple(images.shape)} {images.dtype}, Inception takes (B, 3, H, W) torch.uint8; "
                "repeat a single channel, scale to 0..255"
            )
        with float32(self.device):
            features, logits = self._network(images.to(self.device))
        return features, logits


def kernel_distance(
    features: Tensor, reference: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation, over random subsets of both sets, of the squared MMD with the kernel (x.y/D + 1)^3.

    The KID of Binkowski et al. 2018 when the features are those of Inception; unbiased, so that it may be below 0. In
    float64: torch-fidelity's own float32 was 3e-8 off where the distance was 1.2e-5. features: (N, D), reference:
    (M, D). `seed`, 0 to 2^32 - 1, draws rows by their place, so give them in the order of the images. The deviation,
    in population form (divided by the count), is that of a subset's distance, not the error of the mean.

    Raises UserError when a set is smaller than `subset_size`. It is not made smaller by itself: the deviation depends
    on it, and is 0 when the subsets are the whole sets.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    features, reference = _pair(features, reference)
    fewest = min(len(features), len(reference))
    if subsets < 1 or subset_size < 2:
        raise UserError(f"{subsets} subset(s) of {subset_size} have no kernel distance; give at least 1 of at least 2")
    if fewest < subset_size:
        raise UserError(
            f"{len(features)} images and {len(reference)} of the reference have no subsets of {subset_size}; "
            f"give more images or a subset size of at most {fewest}"
        )
    scores = kid_features_to_metric(
        features, reference, kid_subsets=subsets, kid_subset_size=subset_size, rng_seed=_seed(seed), verbose=False
    )
    return scores[KEY_METRIC_KID_MEAN], scores[KEY_METRIC_KID_STD]


def precision_recall(features: Tensor, reference: Tensor, *, neighbours: int = 3) -> tuple[float, float]:
    """The share of `features` among the reference, and the share of the reference among `features`, each in [0, 1].

    A vector is among a set when it is no farther from one of its members than that member's neighbour of number
    `neighbours` (Kynkäänniemi et al. 2019, who take features of VGG-16; give both sets the same number of images).
    features: (N, D), reference: (M, D), in any order. Distances are float64, as float32 loses those of near-duplicates.
    Raises UserError when a set has no more than `neighbours` images.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    features, reference = _pair(features, reference)
    fewest = min(len(features), len(reference))
    if not 1 <= neighbours < fewest:
        raise UserError(
            f"{neighbours} neighbours of {len(features)} and {len(reference)} images are out of range; "
            "give at least 1, and more images than neighbours"
        )
    # In parts, as the distances between 50,000 images and 50,000 others would take 20 GB.
    scores = prc_features_to_metric(
        features, reference, prc_neighborhood=neighbours, prc_batch_size=1000, save_cpu_ram=True, verbose=False
    )
    return scores[KEY_METRIC_PRECISION], scores[KEY_METRIC_RECALL]


def inception_score(logits: Tensor, *, splits: int = 10, seed: int) -> tuple[float, float]:
    """Mean and standard deviation, over the splits, of exp(mean KL(p(y|x) || p(y))), 1 to the number of classes.

    Salimans et al. 2016. logits: (N, classes), in the order of the images: `seed`, 0 to 2^32 - 1, shuffles them by
    their place before they are split. The deviation is in population form (divided by the count). Raises UserError when
    there are fewer images than splits.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    if not 1 <= splits <= len(logits):
        raise UserError(
            f"{len(logits)} image(s) cannot be split in {splits}; give at least 1 split and an image for each"
        )
    scores = isc_features_to_metric(_finite(logits), splits=splits, shuffle=True, rng_seed=_seed(seed))
    return scores[KEY_METRIC_ISC_MEAN], scores[KEY_METRIC_ISC_STD]


def _content(weights: Path) -> bytes:
    try:
        return weights.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"no Inception weights at {weights}; fetch them where there is internet with "
            "`hpcvision data fetch inception`, or give --extractor FILE"
        ) from None
    except OSError as error:
        raise UserError(f"{weights} cannot be read ({error.strerror}); give --extractor FILE") from None


def _network(weights: Path, content: bytes) -> torch.nn.Module:
    """The network of torch-fidelity with the weights in `content`, on the CPU; `weights` is for the message."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    remedy = f"fetch {INCEPTION_FILE} anew with `hpcvision data fetch inception`, or give --extractor FILE"
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever these bytes make of the unpickler
        raise UserError(f"{weights} is no file of weights ({type(error).__name__}); {remedy}") from None
    # torch-fidelity reads a file with the full unpickler, which runs what it finds; so it gets what was read safely.
    safe = io.BytesIO()
    torch.save(state, safe)
    safe.seek(0)
    try:
        # The weights are drawn before they are read, from the global generator.
        with torch.random.fork_rng(devices=[]):
            network: torch.nn.Module = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=safe
            )
    except (RuntimeError, TypeError, AttributeError):
        raise UserError(
            f"{weights} does not hold the weights of the Inception v3 of 2015 with 1008 classes "
            f"(torchvision's is another); {remedy}"
        ) from None
    return network


@contextmanager
def float32(device: torch.device) -> Iterator[None]:
    """Without gradient, autocast and TF32, whatever the process trains with, so that a score does not depend on it."""
    # Not by set_float32_matmul_precision: once both ways were used, torch refuses to tell its value.
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    try:
        products.allow_tf32 = convolutions.allow_tf32 = False
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def _pair(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if features.shape[1] != reference.shape[1]:
        raise UserError(
            f"images have {features.shape[1]} features and the reference {reference.shape[1]}; "
            "take both with the same extractor"
        )
    return _finite(features), _finite(reference)


def _finite(features: Tensor) -> Tensor:
    """As float64; raises UserError when one is not finite."""
    if not features.isfinite().all():
        raise UserError("a feature is not finite; look at the images and at the precision of the extractor")
    return features.detach().double()


def _seed(seed: int) -> int:
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"the seed is {seed}; give 0 to {LARGEST_SEED}")
    return seed
