"""What takes poison out of training images, `Data -> Data`, labels untouched. One file each."""

from collections.abc import Callable

from miscue.cleaners.bit_depth import bit_depth
from miscue.cleaners.grayscale import grayscale
from miscue.cleaners.jpeg import jpeg
from miscue.cleaners.median import median
from miscue.cleaners.pixel_outliers import pixel_outliers
from miscue.data import Data

CLEANERS: dict[str, Callable[..., Data]] = {
    "grayscale": grayscale,
    "jpeg": jpeg,
    "bit-depth": bit_depth,
    "median": median,
    "pixel-outliers": pixel_outliers,
}

__all__ = ["CLEANERS", "bit_depth", "grayscale", "jpeg", "median", "pixel_outliers"]
