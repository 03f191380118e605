"""Synthetic micrographs of cells in differential interference contrast (DIC).

DIC shows the derivative of the optical path along one direction: cells stand out as a
relief, bright on one side and dark on the other, while their grey is on average that of
the background. A threshold does not segment them; rims, shadows and texture do. Meant
to resemble DIC-C2DH-HeLa of the Cell Tracking Challenge, in small.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from bayesnorm.arguments import seed_integer
from bayesnorm.datasets import segmentation
from bayesnorm.datasets.splits import Splits

# Of the images that `load` gives: `split_seed` only divides them.
_SEED = 0
_SHEAR = np.deg2rad(45.0)  # From the bright side to the dark one, down and right.


def make_cells(
    count: int,
    size: int = 64,
    seed: int = 0,
    radius: float = 9.0,
    coverage: float = 0.45,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws images of cells, each from `(seed, its index)` alone.

    A cell is a disc whose radius is modulated by random Fourier modes; cells are set
    side by side in clusters or apart, also over the border, until they cover a random
    share of the image around `coverage`. Its optical path is a dome with a steep rim,
    a nucleus with nucleoli, and granules (smoothed noise). The image is the directional
    derivative of the path, blurred, times a random contrast, plus a random slope of the
    illumination, a weak texture and debris of the background, and shot and read noise.

    Args:
        count: Number of images, from 1.
        size: Height and width in pixels, from 16.
        seed: Integer from 0.
        radius: Mean radius of a cell in pixels, from 3.
        coverage: Mean share of the pixels that are of cells, in (0, 0.7].

    Returns:
        `(images, labels)`: uint8 `[count, size, size, 1]`, and uint16
        `[count, size, size]`, 0 for background and 1, 2, ... for the cells.

    Raises:
        ValueError: An argument is out of range.
    """
    for name, value, low in (("count", count, 1), ("size", size, 16)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(
                f"`{name}` must be an integer from {low}, got {name}={value!r}."
            )
    if not radius >= 3:
        raise ValueError(f"`radius` must be 3 pixels or more, got radius={radius!r}.")
    if not 0 < coverage <= 0.7:
        raise ValueError(
            f"`coverage` must lie in (0, 0.7], a share of the pixels, got {coverage!r}."
        )
    seed = seed_integer(seed)
    drawn = [
        _draw(np.random.default_rng([seed, index]), size, radius, coverage)
        for index in range(count)
    ]
    images, labels = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
    return images[..., None], labels


def load(
    split_seed: int = 0,
    downscale: int = 1,
    tile: int | None = None,
    count: int = 60,
    size: int = 64,
) -> Splits:
    """Sixty images of 64x64 pixels, divided by image as `segmentation.from_images`.

    Args:
        split_seed: Seed of the division into train and validation.
        downscale: As in `segmentation.from_images`.
        tile: As in `segmentation.from_images`.
        count: Number of images.
        size: Height and width of them, before downscaling.

    Returns:
        A `Splits`.
    """
    images, labels = make_cells(count, size, _SEED)
    return segmentation.from_images(
        images, labels, "cells", split_seed, downscale=downscale, tile=tile
    )


def _draw(rng, size, radius, coverage):
    """One image `[size, size]` and its labels."""
    labels, path = _cells(rng, size, radius, coverage * rng.uniform(0.65, 1.35))
    inside = labels > 0
    relief = _derivative(path, rng)
    # The contrast is that of the cells, whatever their size.
    relief *= rng.uniform(18, 36) / (relief[inside].std() if inside.any() else 1.0)
    background = _derivative(_debris(rng, size, inside), rng) * rng.uniform(5, 12)
    background += _noise(rng, size, 1.2) * rng.uniform(1.0, 2.5)
    grey = 128 + rng.normal(0, 6) + relief + background + _illumination(rng, size)
    # Shot noise grows with the light, read noise does not.
    deviation = np.sqrt(np.clip(grey, 0, None) * 0.03 + rng.uniform(1, 2) ** 2)
    grey += deviation * rng.normal(size=grey.shape)
    return np.clip(np.round(grey), 0, 255).astype(np.uint8), labels


def _cells(rng, size, radius, coverage):
    """Labels, and the optical path of the cells."""
    y, x = np.mgrid[:size, :size].astype(float)
    labels = np.zeros((size, size), np.uint16)
    path = np.zeros((size, size))
    # The distance to the nearest cell's centre, 1 at its rim: touching cells meet
    # where they are equally near.
    nearest = np.full((size, size), np.inf)
    granules = _noise(rng, size, 0.8) - 0.7 * _noise(rng, size, 2.0)
    placed = []
    while np.mean(labels > 0) < coverage and len(placed) < 200:
        own = radius * np.exp(rng.normal(0, 0.18))
        centre = _place(rng, size, own, placed)
        placed.append((*centre, own))
        distance = _outline(rng, y - centre[0], x - centre[1], own)
        owns = (distance < 1) & (distance < nearest)
        labels[owns] = len(placed)
        path[owns] = _dome(rng, y, x, centre, own, distance, granules)[owns]
        nearest = np.minimum(nearest, distance)
    # A cell of which others left next to nothing is none.
    areas = np.bincount(labels.ravel())
    kept = areas >= 0.1 * np.pi * radius**2
    kept[0] = False
    path[~kept[labels]] = 0
    return (np.cumsum(kept) * kept).astype(np.uint16)[labels], path


def _place(rng, size, radius, placed):
    """A centre beside a cell that is there, or anywhere, and in no other cell."""
    for _ in range(50):
        if placed and rng.random() < 0.65:
            y, x, other = placed[rng.integers(len(placed))]
            angle = rng.uniform(0, 2 * np.pi)
            apart = (radius + other) * rng.uniform(0.85, 1.1)
            centre = np.array([y + apart * np.sin(angle), x + apart * np.cos(angle)])
        else:
            centre = rng.uniform(-0.5 * radius, size - 1 + 0.5 * radius, 2)
        low, high = -0.6 * radius, size - 1 + 0.6 * radius
        if np.all((low < centre) & (centre < high)) and all(
            np.hypot(*(centre - other[:2])) > 0.75 * (radius + other[2])
            for other in placed
        ):
            break
    return centre


def _outline(rng, dy, dx, radius):
    """Distance to the centre in units of the radius there, 1 on the outline."""
    angle = np.arctan2(dy, dx)
    modes = np.arange(2, 7)
    amplitudes = rng.normal(0, 0.26, modes.size) / modes**1.1
    phases = rng.uniform(0, 2 * np.pi, modes.size)
    waves = np.cos(angle[..., None] * modes + phases) @ amplitudes
    return np.hypot(dy, dx) / (radius * np.exp(np.clip(waves, -0.6, 0.5)))


def _dome(rng, y, x, centre, radius, distance, granules):
    """Optical path of a cell, in units of about its height."""
    height = rng.uniform(0.6, 1.1) * radius
    rest = np.clip(1 - distance**2, 0, None)
    dome = height * rest ** rng.uniform(0.35, 0.6)
    place = centre + rng.normal(0, 0.15 * radius, 2)
    stretch = np.exp(rng.normal(0, 0.12))
    turn = rng.uniform(0, np.pi)
    u = (y - place[0]) * np.cos(turn) + (x - place[1]) * np.sin(turn)
    v = (x - place[1]) * np.cos(turn) - (y - place[0]) * np.sin(turn)
    size = rng.uniform(0.38, 0.5) * radius
    nuclear = np.hypot(u / (size * stretch), v * stretch / size)
    nucleus = 1 / (1 + np.exp((nuclear - 1) * size / 0.7))
    dome += rng.uniform(0.08, 0.2) * height * nucleus
    for _ in range(rng.integers(1, 4)):
        spot = place + rng.normal(0, 0.4 * size, 2)
        squared = (y - spot[0]) ** 2 + (x - spot[1]) ** 2
        width = rng.uniform(0.09, 0.14) * radius
        dome += rng.uniform(0.08, 0.16) * radius * np.exp(-squared / (2 * width**2))
    # The cytoplasm is grainy, the nucleus and the thin rim are smooth.
    grain = rng.uniform(0.6, 1.1) * rest**0.3 * (1 - 0.7 * nucleus)
    return dome + grain * granules


def _derivative(path, rng):
    """Derivative along the shear of the blurred path."""
    angle = _SHEAR + rng.normal(0, np.deg2rad(4))
    blurred = ndimage.gaussian_filter(path, 0.8, mode="nearest")
    down, right = np.gradient(blurred)
    return np.sin(angle) * down + np.cos(angle) * right


def _debris(rng, size, inside):
    """Optical path of specks that are no cells."""
    y, x = np.mgrid[:size, :size]
    path = np.zeros((size, size))
    for _ in range(rng.poisson(2.0 * (size / 64) ** 2)):
        centre = rng.uniform(0, size, 2)
        squared = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
        path += rng.uniform(0.5, 2.0) * np.exp(-squared / (2 * rng.uniform(0.7, 1.3)))
    return path * ~inside


def _illumination(rng, size):
    """A slope and a bowl, slow in space."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    slope = rng.normal(0, 5, 2)
    return slope[0] * y + slope[1] * x + rng.normal(0, 4) * (y**2 + x**2 - 2 / 3)


def _noise(rng, size, width):
    """Gaussian noise smoothed over `width` pixels, of deviation 1."""
    smooth = ndimage.gaussian_filter(rng.normal(size=(size, size)), width, mode="wrap")
    # White noise of deviation 1 keeps 1 / (2 width sqrt(pi)) of it.
    return smooth * 2 * width * np.sqrt(np.pi)
