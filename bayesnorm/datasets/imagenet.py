"""ImageNet, read with TensorFlow Datasets, its training part while it is trained on.

A run holds no image of the training part longer than a step takes: files are read,
decoded and cropped epoch after epoch. What is evaluated is decoded once, into a file
that is mapped into memory.
"""

from __future__ import annotations

import tempfile

import numpy as np

from bayesnorm.datasets import tfds
from bayesnorm.datasets.splits import Split, Splits, StreamedSplit, channel_statistics
from bayesnorm.types import StrPath

NAMES = ("imagenet2012",)
SIZE = (224, 224)
# One image of the training part in so many is validation: ImageNet's own validation
# part, whose labels are known, is what everybody tests on.
_VALIDATION_SHARE = 128
# Of the training images, for the statistics of the channels.
_SHOWN = 1024
# Images whose order is random within the files, whose own is random, too.
_SHUFFLED = 4096
_BATCH = 128
# Side of the square that is cut from the centre for a test, over the shorter side.
_CENTRE = 0.875
_AREAS, _RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)
_PIXEL = 1 / 255


def load(
    name: str,
    data_dir: StrPath | None = None,
    size: tuple[int, int] | None = None,
    download: bool = False,
) -> Splits:
    """Opens `imagenet2012`: 1000 classes, 1.27 million training images.

    Images are uint8, and the network sees `images / 255`. In training each is a random
    crop, of 8 to 100 % of the area and with sides in a ratio of 3:4 to 4:3, scaled to
    `size` and flipped in half of the cases (Szegedy et al., 2015, "Going Deeper with
    Convolutions", section 6), or without augmentation what it is in a test: the centre,
    0.875 times the shorter side long (256 to 224 pixels). Crops and order of an epoch
    are functions of the seed and of the epoch.

    The last 128th of the training part, in the stored order, is validation; test is
    ImageNet's validation part. Both lie decoded in a file without a name in the folder
    for temporary ones (`$TMPDIR`), 7.5 GB of the 50,000 test images at 224 pixels.

    Args:
        name: One of `NAMES`.
        data_dir: As of `tfds.load`.
        size: `(height, width)` of the crops; None for 224 pixels.
        download: As of `tfds.load`; its files have to be fetched by hand first.

    Returns:
        A `Splits`, whose `train` is a `StreamedSplit`.

    Raises:
        ImportError: TensorFlow Datasets or TensorFlow is not installed.
        ValueError: The directory is missing or broken.
    """
    size = size or SIZE
    return tfds.read(
        name, data_dir, download, lambda builder: _splits(name, builder, size)
    )


def _splits(name, builder, size):
    count = builder.info.splits["train"].num_examples
    held = -(-count // _VALIDATION_SHARE)
    kept = count - held
    shown = _decoded(builder, f"train[:{min(kept, _SHOWN)}]", size)

    def read(seed, epoch, augment, num_examples):
        return _epoch(builder, f"train[:{num_examples}]", size, seed, epoch, augment)

    mean, stddev = channel_statistics(shown.images, _PIXEL)
    label = builder.info.features["label"]
    return Splits(
        name=name,
        train=StreamedSplit(shown.images, shown.labels, kept, read),
        validation=_decoded(builder, f"train[{kept}:]", size),
        test=_decoded(builder, "validation", size),
        num_classes=label.num_classes,
        class_names=tuple(label.names),
        channel_mean=mean,
        channel_stddev=stddev,
        scale=_PIXEL,
    )


def _decoded(builder, part, size):
    """Returns the centres of a part's images, in the stored order."""
    count = builder.info.splits[part].num_examples
    with tempfile.TemporaryFile() as file:
        images = np.memmap(file, np.uint8, "w+", shape=(count, *size, 3))
    labels, start = np.empty(count, np.int64), 0
    dataset = _records(builder, part, shuffle_files=False)
    crop = _mapped(lambda i, encoded: _scaled(encoded, _centre(encoded), size))
    for batch, batch_labels in crop(dataset).as_numpy_iterator():
        end = start + len(batch)
        images[start:end], labels[start:end] = batch, batch_labels
        start = end
    return Split(images, labels)


def _epoch(builder, part, size, seed, epoch, augment):
    """Returns the batches of an epoch, a `tf.data.Dataset`."""
    import tensorflow as tf

    def crop(i, encoded):
        if not augment:
            return _scaled(encoded, _centre(encoded), size)
        draw = tf.random.experimental.stateless_fold_in(tf.stack([seed, epoch]), i)
        image = _scaled(encoded, _random_window(encoded, draw), size)
        return tf.image.stateless_random_flip_left_right(image, draw)

    order = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    dataset = _records(builder, part, shuffle_files=True, shuffle_seed=order)
    dataset = dataset.shuffle(_SHUFFLED, seed=order, reshuffle_each_iteration=False)
    return _mapped(crop)(dataset)


def _records(builder, part, shuffle_files, shuffle_seed=None):
    import tensorflow_datasets
    from tensorflow_datasets import decode

    return builder.as_dataset(
        split=part,
        as_supervised=True,
        shuffle_files=shuffle_files,
        decoders={"image": decode.SkipDecoding()},
        read_config=tensorflow_datasets.ReadConfig(shuffle_seed=shuffle_seed),
    )


def _mapped(crop):
    """Returns a function of records to batches, `crop` of number and file each."""
    import tensorflow as tf

    def example(i, record):
        encoded, label = record
        return crop(i, encoded), label

    def mapped(dataset):
        dataset = dataset.enumerate().map(example, tf.data.AUTOTUNE, deterministic=True)
        return dataset.batch(_BATCH).prefetch(tf.data.AUTOTUNE)

    return mapped


def _centre(encoded):
    """Returns `[top, left, height, width]` of the square in the centre."""
    import tensorflow as tf

    sides = tf.image.extract_jpeg_shape(encoded)[:2]
    side = tf.cast(_CENTRE * tf.cast(tf.reduce_min(sides), "float32"), "int32")
    side = tf.maximum(side, 1)
    return tf.concat([(sides - side) // 2, [side, side]], 0)


def _random_window(encoded, seed):
    """Returns `[top, left, height, width]` of a random crop."""
    import tensorflow as tf

    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(encoded),
        tf.zeros((0, 0, 4)),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=_RATIOS,
        area_range=_AREAS,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], 0)


def _scaled(encoded, window, size):
    """Returns the window of a JPEG file, uint8 `[*size, 3]`."""
    import tensorflow as tf

    image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
    image = tf.image.resize(image, size, antialias=True)
    return tf.cast(tf.round(image), "uint8")
