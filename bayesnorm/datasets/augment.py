"""Random shifts, flips and deformations as graph operations, on every backend.

The layers take images, or a dict of `"images"` and `"segmentation_masks"`, which then
move together.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from bayesnorm.arguments import check_number, positive_integer
from bayesnorm.seeds import SeededLayer
from bayesnorm.types import Tensor


class Augmentation(NamedTuple):
    """What augmentation suits a data set.

    Attributes:
        max_shift: Largest shift along each axis, in pixels; 0 for none.
        flip: Whether left and right may be exchanged.
        reflect: Whether what comes in at the edges is the image's mirror image.
        vertical_flip: Whether top and bottom may be exchanged.
        max_displacement: As of `RandomElastic`, in pixels; 0 for no deformation.
        spacing: As of `RandomElastic`, in pixels.
    """

    max_shift: int
    flip: bool
    reflect: bool = False
    vertical_flip: bool = False
    max_displacement: float = 0.0
    spacing: int = 16

    def layers(self, seed: int) -> list[keras.layers.Layer]:
        """Returns the layers that do it, to be put in a `keras.Sequential`.

        One that is to take dicts must not be built with the shape of images before.

        Args:
            seed: Integer from 0, below 2**30, from which theirs follow.
        """
        layers = [RandomShift(self.max_shift, reflect=self.reflect, seed=2 * seed)]
        if self.flip or self.vertical_flip:
            layers.append(RandomFlip(self.flip, self.vertical_flip, seed=2 * seed + 1))
        if self.max_displacement:
            # Half the range of seeds away from those of the others.
            layers.append(
                RandomElastic(self.max_displacement, self.spacing, seed=2**31 + seed)
            )
        return layers


_CELLS = Augmentation(0, flip=True, vertical_flip=True, max_displacement=6.0)
_AUGMENTATION = {
    "cifar10": Augmentation(max_shift=2, flip=True),
    "mnist": Augmentation(max_shift=2, flip=False),
    "digits": Augmentation(max_shift=1, flip=False),
    # What these show is not known, and writing, for one, bears no flips.
    "npz": Augmentation(max_shift=2, flip=False),
    "image_folder": Augmentation(max_shift=2, flip=False),
    "cells": _CELLS,
    "dic_hela": _CELLS,
}
_DENSE_AUGMENTATION = _AUGMENTATION | {"image_folder": _CELLS}


def augmentation_for(name: str, dense: bool = False) -> Augmentation:
    """The default `Augmentation` of a data set, by its name.

    `cifar10` has the one of Shekhovtsov & Flach (2018): shifts by up to 2 pixels and
    flips. Digits are not flipped, and those of 8x8 pixels shift by at most 1; images of
    your own shift by up to 2 pixels and are not flipped. Cells are flipped both ways
    and deformed, by up to 6 pixels on a grid of 16. ImageNet is cropped at random where
    it is read, `bayesnorm.datasets.imagenet`.

    Args:
        name: Name of the set.
        dense: Whether it has a label for each pixel, as an `image_folder` of cells.

    Raises:
        ValueError: The set is unknown.
    """
    known = _DENSE_AUGMENTATION if dense else _AUGMENTATION
    if name not in known:
        raise ValueError(
            f"No default augmentation for data set {name!r}, only for "
            f"{tuple(known)}. Make one: Augmentation(max_shift=2, flip=False)."
        )
    return known[name]


def shift_images(images: Tensor, offsets: Tensor, reflect: bool = False) -> Tensor:
    """Shifts each image by its own offset; zeros come in at the edges.

    `out[i, r, c] = images[i, r - offsets[i, 0], c - offsets[i, 1]]`, 0 outside.
    With `reflect` an index -k outside stands for k, and likewise at the other edge:
    shifts by up to p are crops of an image padded by reflection by p pixels.

    Args:
        images: `[n, height, width, channels]`, any type; the last three sizes static.
        offsets: `[n, 2]` integers, down and right, in pixels; with `reflect` smaller
            than the image.
        reflect: Whether edges are reflected.

    Returns:
        `[n, height, width, channels]`, type of `images`.
    """
    images = ops.convert_to_tensor(images)
    offsets = ops.cast(offsets, "int32")
    size = ops.shape(images)[0]
    height, width, channels = images.shape[1:]
    # One gather of whole pixels. Each image gets one zero pixel, which all that lies
    # outside reads: cheaper than padding, and right for every offset.
    flat = ops.reshape(images, (size, height * width, channels))
    flat = ops.pad(flat, ((0, 0), (0, 1), (0, 0)))
    rows = (ops.arange(height)[None, :] - offsets[:, :1])[:, :, None]
    columns = (ops.arange(width)[None, :] - offsets[:, 1:])[:, None, :]
    if reflect:
        rows = (height - 1) - ops.abs(height - 1 - ops.abs(rows))
        columns = (width - 1) - ops.abs(width - 1 - ops.abs(columns))
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = ops.where(inside, rows * width + columns, height * width)
    index = index + (ops.arange(size) * (height * width + 1))[:, None, None]
    return ops.take(ops.reshape(flat, (-1, channels)), index, axis=0)


def flip_images(images: Tensor, flipped: Tensor, vertical: bool = False) -> Tensor:
    """Exchanges left and right, or top and bottom, where asked.

    Args:
        images: `[n, height, width, channels]`.
        flipped: `[n]` booleans.
        vertical: Whether top and bottom are exchanged.

    Returns:
        `[n, height, width, channels]`.
    """
    images = ops.convert_to_tensor(images)
    flipped = ops.reshape(ops.cast(flipped, "bool"), (-1, 1, 1, 1))
    return ops.where(flipped, ops.flip(images, axis=1 if vertical else 2), images)


def deform_images(
    images: Tensor, displacements: Tensor, nearest: bool = False
) -> Tensor:
    """Moves the pixels of each image by its own displacements.

    `out[i, r, c] = images[i, r + displacements[i, r, c, 0], c + displacements[i, r, c,
    1]]`, bilinear between pixels; an index -k outside stands for k, and likewise at the
    other edge, as in `shift_images`.

    Args:
        images: `[n, height, width, channels]`, any type; the last three sizes static.
        displacements: `[n, height, width, 2]` floats, down and right, in pixels, so
            that nothing further outside than the image's size is asked for.
        nearest: Whether the nearest pixel is taken, as is right for labels.

    Returns:
        `[n, height, width, channels]`, type of `images`; integer images that are
        interpolated are rounded.
    """
    images = ops.convert_to_tensor(images)
    displacements = ops.cast(displacements, "float32")
    size = ops.shape(images)[0]
    height, width, channels = images.shape[1:]
    flat = ops.reshape(images, (-1, channels))
    first = (ops.arange(size) * (height * width))[:, None, None]
    rows = ops.arange(height, dtype="float32")[:, None] + displacements[..., 0]
    columns = ops.arange(width, dtype="float32") + displacements[..., 1]

    # `keras.ops.image.map_coordinates` takes one image at a time, and at the upper and
    # left edge its fill modes differ between the backends.
    def pixels(row, column):
        row = (height - 1) - ops.abs(height - 1 - ops.abs(ops.cast(row, "int32")))
        column = (width - 1) - ops.abs(width - 1 - ops.abs(ops.cast(column, "int32")))
        return ops.take(flat, first + row * width + column, axis=0)

    if nearest:
        return pixels(ops.floor(rows + 0.5), ops.floor(columns + 0.5))
    top, left = ops.floor(rows), ops.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    dtype = "float64" if images.dtype == "float64" else "float32"

    def row_of(row):
        one, other = pixels(row, left), pixels(row, left + 1)
        return (1 - right) * ops.cast(one, dtype) + right * ops.cast(other, dtype)

    deformed = (1 - down) * row_of(top) + down * row_of(top + 1)
    if not keras.backend.is_float_dtype(images.dtype):
        deformed = ops.round(deformed)
    return ops.cast(deformed, images.dtype)


def displacement_field(nodes: Tensor, height: int, width: int, spacing: int) -> Tensor:
    """The smooth field of which `nodes` are the coefficients of cubic B-splines.

    The splines are positive and sum to one: the field stays within the range of the
    nodes, and has two continuous derivatives.

    Args:
        nodes: `[n, rows, columns, 2]`, of the size that `grid_size` tells.
        height: Rows of the field.
        width: Columns of the field.
        spacing: Distance of the nodes, in pixels.

    Returns:
        `[n, height, width, 2]`.
    """
    nodes = ops.cast(nodes, "float32")
    down, right = (_spline_weights(size, spacing) for size in (height, width))
    field = ops.einsum("hr,nrcd->nhcd", down, nodes)
    return ops.einsum("wc,nhcd->nhwd", right, field)


def grid_size(size: int, spacing: int) -> int:
    """Number of nodes of `displacement_field` along an axis of `size` pixels."""
    return math.ceil((size - 1) / spacing) + 3


def _spline_weights(size, spacing):
    """Weights `[size, nodes]` of cubic B-splines centred on the image."""
    count = grid_size(size, spacing)
    at = (np.arange(size) - (size - 1) / 2) / spacing + (count - 1) / 2
    distance = np.abs(at[:, None] - np.arange(count))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


class _RandomLayer(SeededLayer):
    """A layer that changes images when training, each by a draw of its own.

    Subclasses draw in `draw(images)` (None for no change) and apply what was drawn in
    `change(images, drawn, labels)`, `labels` telling whether pixels are class labels.

    Args:
        seed: Integer, None for a random one. The state that follows from it is saved
            and loaded with the weights.
    """

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        # Types of images pass unchanged: uint8 stays uint8.
        super().__init__(seed=seed, autocast=False, **kwargs)

    def call(self, images: Tensor, training: bool | None = False) -> Tensor:
        return self.augment(images) if training else images

    def augment(self, images: Tensor) -> Any:
        """Images (and masks) changed at random, whatever the mode."""
        if not isinstance(images, dict):
            drawn = self.draw(images)
            return images if drawn is None else self.change(images, drawn, False)
        drawn = self.draw(images["images"])
        if drawn is None:
            return images
        masks = ops.expand_dims(images["segmentation_masks"], -1)
        changed = {
            "images": self.change(images["images"], drawn, False),
            "segmentation_masks": self.change(masks, drawn, True)[..., 0],
        }
        return {**images, **changed}

    def build(self, input_shape: Any) -> None:
        shape = input_shape
        if isinstance(input_shape, dict):
            if not {"images", "segmentation_masks"} <= input_shape.keys():
                raise ValueError(
                    f"{type(self).__name__} takes a dict with 'images' and "
                    f"'segmentation_masks', got {sorted(input_shape)}."
                )
            shape = input_shape["images"]
        if len(shape) != 4 or None in shape[1:]:
            raise ValueError(
                f"{type(self).__name__} takes images [n, height, width, channels] of a "
                f"static size, got shape {tuple(shape)}."
            )
        if shape is not input_shape:
            masks = input_shape["segmentation_masks"]
            if tuple(masks[1:]) != tuple(shape[1:3]):
                raise ValueError(
                    f"{type(self).__name__} takes masks [n, {shape[1]}, {shape[2]}] "
                    f"with these images, got shape {tuple(masks)}."
                )
        self.check_size(*shape[1:3])

    def check_size(self, height: int, width: int) -> None:
        """Raises a ValueError if images of that size are too small."""

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def compute_output_spec(self, images: Tensor, training: bool | None = False) -> Any:
        return keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape, dtype=x.dtype), images
        )


@keras.saving.register_keras_serializable("bayesnorm")
class RandomShift(_RandomLayer):
    """Shifts each training image by up to `max_shift` pixels along both axes.

    Down and right are independent and uniform on the `2 max_shift + 1` integers
    `-max_shift..max_shift`. Zeros come in at the edges, as in Shekhovtsov & Flach
    (2018): zeros of the pixels that this layer sees. Put it before the standardization,
    where a zero is black; after it a zero would be the mean colour. Masks get class 0.

    Args:
        max_shift: Largest shift, in pixels, from 0 to less than the image's size.
        reflect: Whether the image's mirror image comes in instead of zeros.
        seed: Integer, None for a random one. The state that follows from it is saved
            and loaded with the weights.

    Call arguments:
        images: `[n, height, width, channels]`, any type, which is kept; or a dict of
            them as `images` and of labels `[n, height, width]` as `segmentation_masks`.
        training: Whether to shift; images pass unchanged otherwise.
    """

    def __init__(
        self,
        max_shift: int = 2,
        reflect: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        if isinstance(max_shift, bool) or not isinstance(max_shift, int):
            raise TypeError(
                f"`max_shift` must be an integer number of pixels, got {max_shift!r}."
            )
        if max_shift < 0:
            raise ValueError(f"`max_shift` must be 0 or more pixels, got {max_shift}.")
        self.max_shift = max_shift
        self.reflect = reflect

    def check_size(self, height: int, width: int) -> None:
        """Checks that the shift leaves something of the image."""
        if self.max_shift >= min(height, width):
            raise ValueError(
                f"`max_shift`={self.max_shift} pixels would shift images of "
                f"{height}x{width} out of sight. Take a smaller one."
            )

    def draw(self, images: Tensor) -> Any:
        """Offsets `[n, 2]`."""
        if self.max_shift == 0:
            return None
        return keras.random.randint(
            (ops.shape(images)[0], 2),
            -self.max_shift,
            self.max_shift + 1,
            seed=self.seed_generator,
        )

    def change(self, images: Tensor, drawn: Any, labels: bool) -> Tensor:
        """Images shifted by the offsets."""
        return shift_images(images, drawn, self.reflect)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        config = {"max_shift": self.max_shift, "reflect": self.reflect}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable("bayesnorm")
class RandomFlip(_RandomLayer):
    """Exchanges left and right of each training image with probability 1/2.

    With both directions on, they are exchanged independently of each other.

    Args:
        horizontal: Whether left and right are exchanged.
        vertical: Whether top and bottom are exchanged.
        seed: Integer, None for a random one. The state that follows from it is saved
            and loaded with the weights.

    Call arguments:
        images: `[n, height, width, channels]`, any type, which is kept; or a dict of
            them as `images` and of labels `[n, height, width]` as `segmentation_masks`.
        training: Whether to flip; images pass unchanged otherwise.
    """

    def __init__(
        self,
        horizontal: bool = True,
        vertical: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        if not (horizontal or vertical):
            raise ValueError(
                "`horizontal` or `vertical` must be true: RandomFlip would do nothing."
            )
        self.horizontal = bool(horizontal)
        self.vertical = bool(vertical)

    def draw(self, images: Tensor) -> Any:
        """A list of `[n]` booleans, one a direction."""
        shape = (ops.shape(images)[0],)
        return [
            keras.random.uniform(shape, seed=self.seed_generator) < 0.5
            for _ in range(self.horizontal + self.vertical)
        ]

    def change(self, images: Tensor, drawn: Any, labels: bool) -> Tensor:
        """Images flipped where drawn."""
        directions = [False] * self.horizontal + [True] * self.vertical
        for flipped, vertical in zip(drawn, directions, strict=True):
            images = flip_images(images, flipped, vertical)
        return images

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        config = {"horizontal": self.horizontal, "vertical": self.vertical}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable("bayesnorm")
class RandomElastic(_RandomLayer):
    """Deforms each training image smoothly, as a free-form deformation.

    Displacements down and right, uniform on `-max_displacement..max_displacement` and
    independent, are drawn on a grid of nodes `spacing` pixels apart; cubic B-splines
    make them a smooth field (`displacement_field`), which stays within these bounds;
    its root mean square is 0.277 `max_displacement` along each axis. Images are
    interpolated, labels taken from the nearest pixel; both are mirrored at the edges.

    Args:
        max_displacement: Bound of the displacement along each axis, in pixels from 0;
            at most `0.48 * spacing`, below which the deformation cannot fold (Choi &
            Lee).
        spacing: Distance of the nodes in pixels, an integer from 1.
        seed: Integer, None for a random one. The state that follows from it is saved
            and loaded with the weights.

    Call arguments:
        images: `[n, height, width, channels]`, any type, which is kept; or a dict of
            them as `images` and of labels `[n, height, width]` as `segmentation_masks`.
        training: Whether to deform; images pass unchanged otherwise.

    Reference:
        Rueckert et al., 1999, "Nonrigid registration using free-form deformations",
        IEEE Transactions on Medical Imaging 18(8). Choi & Lee, 2000, "Injectivity
        conditions of 2D and 3D uniform cubic B-spline functions", Graphical Models 62.
    """

    def __init__(
        self,
        max_displacement: float = 6.0,
        spacing: int = 16,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        check_number("max_displacement", max_displacement)
        self.max_displacement = float(max_displacement)
        self.spacing = positive_integer("spacing", spacing)
        if self.max_displacement > 0.48 * self.spacing:
            raise ValueError(
                f"`max_displacement`={max_displacement} pixels on a grid of "
                f"`spacing`={spacing} might fold the image. Take at most "
                f"{0.48 * self.spacing:g}, or a wider grid."
            )

    def check_size(self, height: int, width: int) -> None:
        """Checks that the mirror image reaches far enough."""
        if self.max_displacement > min(height, width) - 2:
            raise ValueError(
                f"`max_displacement`={self.max_displacement} pixels is too much for "
                f"images of {height}x{width}. Take a smaller one."
            )

    def draw(self, images: Tensor) -> Any:
        """Displacements `[n, height, width, 2]`."""
        if self.max_displacement == 0:
            return None
        height, width = images.shape[1:3]
        grid = (grid_size(height, self.spacing), grid_size(width, self.spacing))
        nodes = keras.random.uniform(
            (ops.shape(images)[0], *grid, 2),
            -self.max_displacement,
            self.max_displacement,
            seed=self.seed_generator,
        )
        return displacement_field(nodes, height, width, self.spacing)

    def change(self, images: Tensor, drawn: Any, labels: bool) -> Tensor:
        """Images deformed by the displacements."""
        return deform_images(images, drawn, nearest=labels)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        config = {"max_displacement": self.max_displacement, "spacing": self.spacing}
        return {**super().get_config(), **config}
