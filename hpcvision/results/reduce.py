"""A small copy of a run's archive that still proves the run: what a repository or a paper's supplement has room for."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcvision.errors import UserError
from hpcvision.results import digests
from hpcvision.results.files import array, write_archive
from hpcvision.results.run import load

FLOAT32_BITS = 24
PICTURES = ("samples", "interpolations", "strips")
SMALL = 1024
"""Arrays of fewer numbers are stored plainly: an index of chunks takes more than compression saves."""


def reduce(path: Path, output: Path, *, significant_bits: int = FLOAT32_BITS) -> int:
    """Write a copy without pictures, and with no other weights than the headline's; returns its size in bytes.

    significant_bits: how many of the 24 of a float32 weight are kept, rounded to the nearest; fewer compress better.
    The copy has seals of its own, and the digest of the whole archive as `reduced_from`.
    Raises UserError for a run that has not finished, a broken seal, a copy of a copy, and an output that is there.
    """
    run = load(path)
    if not run.finished:
        raise UserError(f"{run.path} has not finished; only what a finished run proves can be reduced")
    if run.reduced_from:
        raise UserError(f"{run.path} is a reduced copy already; give the whole archive")
    if output.exists():
        raise UserError(f"--output={output} is there already; remove it or choose another name")
    with run.place.open() as whole:
        if broken := digests.broken_seals(whole):
            raise UserError(f"{run.path} is not as it was written ({broken[0]}); take another copy of it")

    def fill(file: h5py.File) -> None:
        with run.place.open() as whole:
            file.attrs.update({name: value for name, value in whole.attrs.items() if name != "digest"})
            file.attrs.update(reduced_from=run.digest, significant_bits=significant_bits)
            for name in whole:
                if name not in (digests.TABLE, "weights", *PICTURES):
                    whole.copy(name, file)
            fill_weights(file, whole[f"weights/{run.headline}"], significant_bits)
        digests.seal(file)

    write_archive(output, fill)
    return output.stat().st_size


def fill_weights(file: h5py.File, weights: h5py.Group, significant_bits: int) -> None:
    """The same group, rounded and compressed."""
    group = file.create_group(weights.name)
    group.attrs.update(weights.attrs)
    for name, item in weights.items():
        values = rounded(array(item), significant_bits)
        how: dict[str, Any] = {}
        if values.size >= SMALL:
            how = {"chunks": values.shape, "shuffle": True, "compression": "gzip", "compression_opts": 9}
        group.create_dataset(name, data=values, **how).attrs.update(item.attrs)


def rounded(values: NDArray[Any], significant_bits: int) -> NDArray[Any]:
    """The nearest numbers with so many significant bits; whole numbers, such as counters, stay as they are."""
    if values.dtype.kind != "f":
        return values
    fraction, exponent = np.frexp(values)
    scale = 2.0**significant_bits
    nearest: NDArray[Any] = np.ldexp(np.rint(fraction * scale) / scale, exponent).astype(values.dtype)
    return nearest
