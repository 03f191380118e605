"""Sources: streams train as data on the device do, resume, and say what is wrong."""

import gc
import threading

import keras
import numpy as np
import pytest

from bayesnorm import datasets
from bayesnorm.streams.ahead import ahead
from bayesnorm.training.checkpoints import Checkpoints
from bayesnorm.training.loop import Config, Loop, fit
from bayesnorm.training.optimization import make_optimizer
from bayesnorm.training.parts import of_splits
from bayesnorm.training.sources import OnDevice, OnHost, training_order
from bayesnorm.training.stream import Stream

N, CLASSES = 50, 3


@pytest.fixture
def splits(rng):
    def part(n):
        images = rng.integers(0, 256, (n, 4, 4, 1)).astype("uint8")
        return images, rng.integers(0, CLASSES, n)

    return datasets.from_arrays(part(N), part(23), part(8), class_names=list("abc"))


class Batches(keras.utils.PyDataset):
    """Batches of five of a part, with an end or without."""

    def __init__(self, part, length=None):
        super().__init__()
        self.part, self.length = part, length

    def __len__(self):
        return self.length

    @property
    def num_batches(self):
        return self.length

    def __getitem__(self, i):
        places = np.arange(5 * i, 5 * i + 5) % len(self.part)
        return self.part.images[places], self.part.labels[places]


def in_order(part, batch_size=8, seed=0):
    """A function of the epoch that gives what a part on the device gives."""

    def batches(epoch):
        for step in training_order(len(part), batch_size, seed, epoch):
            yield part.images[step], part.labels[step].astype("int32")

    return batches


def loop_on(data, epochs=2, **config):
    config = {"batch_size": 8, "steps_per_call": 4, "eval_batch_size": 7} | config
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(
                CLASSES, kernel_initializer=keras.initializers.HeNormal(0)
            ),
            keras.layers.Dropout(0.2, seed=1),
        ]
    )
    config = Config(epochs=epochs, **config)
    return Loop(
        model, make_optimizer("adam"), data, config, datasets.RandomShift(1, seed=5)
    )


class Runs:
    """Runs from one initial state, on one data after the other."""

    def __init__(self, data, **config):
        self.loop = loop_on(data, **config)
        self.start = self.loop.state()

    def __call__(self, data, *arguments):
        self.loop.set_state(self.start)
        self.loop.data = data
        history = fit(self.loop, *arguments)
        return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def streams(splits, train):
    validation = splits.validation
    return {
        "train": Stream(train, CLASSES, N),
        "validation": Stream([(validation.images, validation.labels)], CLASSES),
    }


def test_streamed_runs_have_the_figures_of_data_on_the_device(splits):
    # Six steps in blocks of four; 23 examples of validation in batches of seven.
    train = splits.train
    examples = list(zip(train.images, train.labels, strict=True))
    run = Runs(splits)
    histories = [
        run(data)
        for data in (
            of_splits(splits),
            of_splits(splits, OnHost),
            streams(splits, in_order(train)),
            streams(splits, examples),
        )
    ]
    assert histories[0][0]["nll"] != histories[0][1]["nll"]
    for streamed in histories[1:]:
        assert streamed == histories[0]


def test_normalization_batches_from_the_host_are_those_on_the_device(splits):
    rows = [
        loop_on(of_splits(splits, kind), normalization_batch=19).train_epoch(1)
        for kind in (OnDevice, OnHost)
    ]
    assert rows[0] == rows[1]


def test_a_streamed_run_gone_on_with_is_an_unbroken_one(splits, tmp_path):
    run = Runs(splits, epochs=3)

    def stop(epoch, logs):
        if epoch == 1:
            raise KeyboardInterrupt

    kinds = {
        "epochs": (in_order(splits.train), False),
        "batches": (Batches(splits.train, 10), False),
        "endless": (Batches(splits.train), True),
    }
    for name, (x, is_endless) in kinds.items():
        unbroken = run(streams(splits, x))
        checkpoints = Checkpoints(tmp_path / name)
        with pytest.raises(KeyboardInterrupt):
            run(
                streams(splits, x),
                checkpoints,
                [keras.callbacks.LambdaCallback(on_epoch_end=stop)],
            )
        assert len(checkpoints.latest().history) == 1
        assert run(streams(splits, x), checkpoints) == unbroken
        assert Stream(x, CLASSES, N)._endless == is_endless


def test_data_without_an_end_are_gone_on_through(splits):
    # Labels that count up: each step's say where the stream is.
    def numbers(epoch):
        for i in range(10_000):
            yield np.zeros((3, 1, 1, 1), "uint8"), np.arange(3 * i, 3 * i + 3)

    source = Stream(numbers, 100_000, num_examples=20, endless=True)
    config = Config(epochs=4, batch_size=8)

    def seen(epoch):
        found = source.training(config, epoch)
        return [int(x) for b in found for x in np.array(b.labels)[: 8 * b.steps]]

    # Two steps an epoch; an epoch asked for out of turn reads past those before it.
    assert [seen(epoch) for epoch in (0, 1, 3)] == [
        list(range(16)),
        list(range(16, 32)),
        list(range(48, 64)),
    ]
    assert seen(0) == list(range(16))


def test_every_element_of_what_takes_an_index_comes_once_an_epoch(splits):
    source = Stream(Batches(splits.train, 10), CLASSES, N, seed=3)
    config = Config(epochs=2, batch_size=5)
    seen = []
    for epoch in (0, 1):
        blocks = list(source.training(config, epoch))
        images = np.concatenate([np.array(block.images) for block in blocks])
        seen.append([image.tobytes() for image in images])
    everything = sorted(image.tobytes() for image in splits.train.images)
    assert sorted(seen[0]) == sorted(seen[1]) == everything
    assert seen[0] != seen[1]


def test_tf_data_set(splits):
    tf = pytest.importorskip("tensorflow")
    train = splits.train

    def seeded(epoch):
        data = tf.data.Dataset.from_tensor_slices((train.images, train.labels))
        return data.shuffle(N, seed=epoch).batch(16)

    run = Runs(streams(splits, seeded))
    assert run(streams(splits, seeded)) == run(streams(splits, seeded))
    run.loop.data = streams(splits, seeded(0))
    with pytest.warns(UserWarning, match="goes on after epoch 1"):
        run.loop.train_epoch(1)
    with pytest.raises(ValueError, match="no end: give num_examples="):
        Stream(seeded(0).repeat(), CLASSES)


def test_grain_data_sets(splits):
    grain = pytest.importorskip("grain")
    train = splits.train
    examples = grain.MapDataset.source(
        list(zip(train.images, train.labels, strict=True))
    )
    # Single examples are taken in the order of data on the device.
    on_device = of_splits(splits)
    run = Runs(on_device)
    assert run(on_device | {"train": Stream(examples, CLASSES)}) == run(on_device)
    batches = examples.repeat().seed(4).shuffle().to_iter_dataset().batch(8)
    source = Stream(batches, CLASSES, N, endless=True)
    assert source._epochs.is_exact
    history = run(on_device | {"train": source})
    assert history[0]["nll"] != history[1]["nll"]
    assert run(on_device | {"train": source}) == history
    with pytest.raises(ValueError, match=r"Leave out repeat\(\)"):
        Stream(examples.repeat(), CLASSES)


def test_what_is_wrong_with_a_stream_is_said(splits):
    train = splits.train
    images, labels = train.images, train.labels

    def once(*batches):
        return [(np.array(x), np.array(y)) for x, y in batches]

    for x, error, match in (
        ([], ValueError, "list is empty"),
        (iter([(images, labels)]), TypeError, "read once"),
        (7, TypeError, "Received: int"),
        ([(images, labels, labels)], ValueError, "tuple of 3 entries"),
        ([{"image": images}], ValueError, r"dict of \['image'\]"),
        (once((images, labels + 1)), ValueError, r"labels must lie in 0\.\.2"),
        (once((images / np.nan, labels)), ValueError, "pixels must be finite"),
        (once((images, labels[:, None])), ValueError, "labels"),
        (Batches(train), ValueError, "num_examples="),
    ):
        with pytest.raises(error, match=match):
            Stream(x, CLASSES)
    stream = Stream(once((images, labels)), CLASSES)
    validation = of_splits(splits)["validation"]
    with pytest.raises(ValueError, match="Training needs num_examples="):
        loop_on({"train": stream, "validation": validation})
    stream = Stream(once((images, labels)), CLASSES, N)
    with pytest.raises(ValueError, match=r"OnHost.*normalization_batch=16"):
        loop_on({"train": stream, "validation": validation}, normalization_batch=16)
    unlike = once((images / np.float32(255), labels))
    with pytest.raises(ValueError, match="one shape and scale"):
        loop_on({"train": Stream(unlike, CLASSES, N), "validation": validation})


def test_what_goes_wrong_in_the_thread_is_raised_where_it_is_waited_for(splits):
    images, labels = splits.train.images, splits.train.labels
    validation = of_splits(splits)["validation"]

    def early(epoch):
        yield images[:30], labels[:30]

    def broken(epoch):
        yield images[:40], labels[:40]
        raise OSError("the disk is gone")

    def changing(epoch):
        yield images[:8], labels[:8]
        yield images[:, :3], labels

    for x, error, match in (
        (early, ValueError, "ended in epoch 1 after 30 examples.*num_examples=30"),
        (broken, OSError, "the disk is gone"),
        (changing, ValueError, "a later one"),
    ):
        loop = loop_on({"train": Stream(x, CLASSES, N), "validation": validation})
        with pytest.raises(error, match=match):
            loop.train_epoch(0)
    gc.collect()
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]


def test_one_item_is_made_ahead_and_the_thread_ends_with_its_consumer():
    made = []

    def items():
        for i in range(10):
            made.append(i)
            yield i

    found = ahead(items())
    assert next(found) == 0
    assert next(found) == 1
    found.close()
    assert made == [0, 1, 2]
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]
    assert list(ahead(items())) == list(range(10))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_stream():
    from benchmarks.stream_jobs import STEP_BYTES, peak

    short, long = (peak("PyDataset", steps) for steps in (50, 500))
    assert 2**20 * (long - short) < 0.1 * 450 * STEP_BYTES
