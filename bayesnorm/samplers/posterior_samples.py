"""Samples of a chain, stored while it runs."""

from __future__ import annotations

import pathlib
import warnings
from typing import Any

import keras

from bayesnorm.arguments import check_number, positive_integer
from bayesnorm.prediction.weight_sets import WeightSets
from bayesnorm.samplers.cyclical_cosine import CyclicalCosine
from bayesnorm.samplers.diagnostics import check_finite
from bayesnorm.samplers.sampler import unwrapped
from bayesnorm.storage import ArchiveError, numbered_files, remove_drafts
from bayesnorm.types import StrPath

_PATTERN = "sample-*.npz"


class PosteriorSamples(keras.callbacks.Callback):
    """Stores the weights at the ends of cycles, as samples of the posterior.

    A sample is taken after epoch `burn_in_epochs + k cycle_epochs`, k = 1, 2, ... It is
    a file `sample-EPOCH.npz`, which appears whole or not at all, without pickle, with a
    checksum for each array. Training that goes on (`initial_epoch` of `fit`) goes on
    with the samples, too.

    Example:
    ```python
    samples = bayesnorm.samplers.PosteriorSamples("posterior", cycle_epochs=50)
    model.fit(images, labels, epochs=500, callbacks=[samples])
    posterior = bayesnorm.samplers.PosteriorSamples.load("posterior", model)
    prediction = bayesnorm.predict(posterior, new_images)
    bayesnorm.export(posterior, "served")
    ```

    Args:
        directory: Folder of the files, made if it is not there.
        cycle_epochs: Epochs from one sample to the next: a cycle of the learning rate.
        burn_in_epochs: Epochs before the first cycle that counts.
        max_samples: How many of the last samples are kept; None for all.

    Raises:
        ValueError: If a number is out of range.
        bayesnorm.training.DivergenceError: While training, if weights are not finite:
            the samples so far are kept.

    Warns:
        UserWarning: If `directory` has samples of later epochs than training begins
            with, or the learning rate is a `CyclicalCosine` and a sample is not at the
            end of a cycle.
    """

    def __init__(
        self,
        directory: StrPath,
        cycle_epochs: int = 1,
        burn_in_epochs: int = 0,
        max_samples: int | None = None,
    ) -> None:
        super().__init__()
        self.directory = pathlib.Path(directory)
        self.cycle_epochs = positive_integer("cycle_epochs", cycle_epochs)
        check_number("burn_in_epochs", burn_in_epochs)
        self.burn_in_epochs = burn_in_epochs
        if max_samples is not None:
            max_samples = positive_integer("max_samples", max_samples)
        self.max_samples = max_samples
        self._begun = self._warned = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Notes that no epoch has begun."""
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks for samples of another run."""
        if self._begun:
            return
        self._begun = True
        later = [number for number in _files(self.directory) if number > epoch]
        if later:
            warnings.warn(
                f"{self.directory} has samples of later epochs ({later[0]} to "
                f"{later[-1]}) than the {epoch} at which training begins. They are "
                "replaced as it gets there; if they are of another run, give another "
                "directory.",
                stacklevel=2,
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes a sample if a cycle is over."""
        done = epoch + 1 - self.burn_in_epochs
        if done <= 0 or done % self.cycle_epochs:
            return
        self._check_cycle(epoch)
        check_finite(self.model, f"The samples in {self.directory} are kept.")
        path = self.directory / f"sample-{epoch + 1:06d}.npz"
        WeightSets(self.model, [self.model.get_weights()]).save(path)
        remove_drafts(self.directory, _PATTERN)
        if self.max_samples is not None:
            # Those before this one: later ones may be of a run that went further.
            old = [p for number, p in _files(self.directory).items() if number <= epoch]
            for each in old[: max(0, len(old) + 1 - self.max_samples)]:
                each.unlink(missing_ok=True)

    def _check_cycle(self, epoch):
        optimizer = unwrapped(getattr(self.model, "optimizer", None))
        schedule = getattr(optimizer, "schedule", None)
        if self._warned or not isinstance(schedule, CyclicalCosine):
            return
        into = int(optimizer.iterations) % schedule.cycle_steps
        if into:
            self._warned = True
            warnings.warn(
                f"The sample after epoch {epoch + 1} is taken at step {into} of a "
                f"cycle of {schedule.cycle_steps} of the learning rate. Expected its "
                "end: let `cycle_steps` be `cycle_epochs` times the steps of an epoch.",
                stacklevel=3,
            )

    @staticmethod
    def load(directory: StrPath, model: keras.Model) -> WeightSets:
        """Reads the samples of a directory, in the order of their epochs.

        Args:
            directory: The folder.
            model: A built model of the architecture of the chain's.

        Returns:
            `bayesnorm.WeightSets`, for `predict` and `export`.

        Raises:
            ValueError: If there is no sample that can be read, or one is of another
                architecture.

        Warns:
            UserWarning: Names the files that are damaged, which are left out.
        """
        files = _files(directory)
        sets, broken = [], []
        for path in files.values():
            try:
                sets += WeightSets.load(path, model)
            except ArchiveError as error:
                broken.append(str(error))
        if broken:
            warnings.warn(
                f"{len(broken)} of {len(files)} samples are damaged and left out: "
                f"{'; '.join(broken)}",
                stacklevel=2,
            )
        if not sets:
            raise ValueError(
                f"{directory} has no sample that can be read. Expected files "
                "sample-EPOCH.npz, as PosteriorSamples writes them."
            )
        return WeightSets(model, sets)


def _files(directory):
    """Returns the files of samples by their epoch, in order."""
    return numbered_files(directory, "sample")
