"""Random shifts and flips as graph operations, on every backend."""

from typing import NamedTuple

import keras
from keras import ops

from bayesnorm.layers.noise import NoiseGenerator


class Augmentation(NamedTuple):
    """What augmentation suits a data set.

    Attributes:
        max_shift: Largest shift along each axis, in pixels; 0 for none.
        flip: Whether left and right may be exchanged.
        reflect: Whether what comes in at the edges is the image's mirror image.
    """

    max_shift: int
    flip: bool
    reflect: bool = False

    def layers(self, seed):
        """Returns the layers that do it.

        Args:
            seed: Integer from 0, from which theirs follow.
        """
        layers = [RandomShift(self.max_shift, reflect=self.reflect, seed=2 * seed)]
        return [*layers, RandomFlip(seed=2 * seed + 1)] if self.flip else layers


_AUGMENTATION = {
    "cifar10": Augmentation(max_shift=2, flip=True),
    "mnist": Augmentation(max_shift=2, flip=False),
    "digits": Augmentation(max_shift=1, flip=False),
}


def augmentation_for(name):
    """The default `Augmentation` of a data set, by its name.

    `cifar10` has the one of Shekhovtsov & Flach (2018): shifts by up to 2 pixels and
    flips. Digits are not flipped, and those of 8x8 pixels shift by at most 1.

    Raises:
        ValueError: The set is unknown.
    """
    if name not in _AUGMENTATION:
        raise ValueError(
            f"No default augmentation for data set {name!r}, only for "
            f"{tuple(_AUGMENTATION)}. Make one: Augmentation(max_shift=2, flip=False)."
        )
    return _AUGMENTATION[name]


def shift_images(images, offsets, reflect=False):
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


def flip_images(images, flipped):
    """Exchanges left and right where asked.

    Args:
        images: `[n, height, width, channels]`.
        flipped: `[n]` booleans.

    Returns:
        `[n, height, width, channels]`.
    """
    images = ops.convert_to_tensor(images)
    flipped = ops.reshape(ops.cast(flipped, "bool"), (-1, 1, 1, 1))
    return ops.where(flipped, ops.flip(images, axis=2), images)


class _RandomLayer(keras.layers.Layer):
    """A layer that changes images when training, each by a draw of its own.

    Args:
        seed: Integer, None for a random one. The state that follows from it is saved
            and loaded with the weights.
    """

    def __init__(self, seed=None, **kwargs):
        # Types of images pass unchanged: uint8 stays uint8.
        super().__init__(autocast=False, **kwargs)
        self.seed = seed
        self.seed_generator = NoiseGenerator(seed)

    def call(self, images, training=False):
        return self.augment(images) if training else images

    def build(self, input_shape):
        if len(input_shape) != 4 or None in input_shape[1:]:
            raise ValueError(
                f"{type(self).__name__} takes images [n, height, width, channels] of a "
                f"static size, got shape {tuple(input_shape)}."
            )

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, images, training=False):
        return keras.KerasTensor(images.shape, dtype=images.dtype)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["seed_generator_state"] = ops.convert_to_numpy(
            self.seed_generator.state.value
        )

    def load_own_variables(self, store):
        if "seed_generator_state" in store:
            self.seed_generator.state.assign(store["seed_generator_state"][()])

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


@keras.saving.register_keras_serializable("bayesnorm")
class RandomShift(_RandomLayer):
    """Shifts each training image by up to `max_shift` pixels along both axes.

    Down and right are independent and uniform on the `2 max_shift + 1` integers
    `-max_shift..max_shift`. Zeros come in at the edges, as in Shekhovtsov & Flach
    (2018): zeros of the pixels that this layer sees. Put it before the standardization,
    where a zero is black; after it a zero would be the mean colour.

    Args:
        max_shift: Largest shift, in pixels, from 0 to less than the image's size.
        reflect: Whether the image's mirror image comes in instead of zeros.
        seed: Integer, None for a random one. The state that follows from it is saved
            and loaded with the weights.

    Call arguments:
        images: `[n, height, width, channels]`, any type, which is kept.
        training: Whether to shift; images pass unchanged otherwise.
    """

    def __init__(self, max_shift=2, reflect=False, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        if isinstance(max_shift, bool) or not isinstance(max_shift, int):
            raise TypeError(
                f"`max_shift` must be an integer number of pixels, got {max_shift!r}."
            )
        if max_shift < 0:
            raise ValueError(f"`max_shift` must be 0 or more pixels, got {max_shift}.")
        self.max_shift = max_shift
        self.reflect = reflect

    def build(self, input_shape):
        """Checks that the shift leaves something of the image."""
        super().build(input_shape)
        if self.max_shift >= min(input_shape[1:3]):
            raise ValueError(
                f"`max_shift`={self.max_shift} pixels would shift images of "
                f"{input_shape[1]}x{input_shape[2]} out of sight. Take a smaller one."
            )

    def augment(self, images):
        """Shifted images, whatever the mode."""
        if self.max_shift == 0:
            return images
        offsets = keras.random.randint(
            (ops.shape(images)[0], 2),
            -self.max_shift,
            self.max_shift + 1,
            seed=self.seed_generator,
        )
        return shift_images(images, offsets, self.reflect)

    def get_config(self):
        """The constructor's arguments."""
        config = {"max_shift": self.max_shift, "reflect": self.reflect}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable("bayesnorm")
class RandomFlip(_RandomLayer):
    """Exchanges left and right of each training image with probability 1/2.

    Args:
        seed: Integer, None for a random one. The state that follows from it is saved
            and loaded with the weights.

    Call arguments:
        images: `[n, height, width, channels]`, any type, which is kept.
        training: Whether to flip; images pass unchanged otherwise.
    """

    def augment(self, images):
        """Images flipped at random, whatever the mode."""
        draws = keras.random.uniform((ops.shape(images)[0],), seed=self.seed_generator)
        return flip_images(images, draws < 0.5)
