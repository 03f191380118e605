"""The versions of a model: what lies in its folder, and what of it is loaded."""

import logging
import pathlib

_FILE = "saved_model.pb"
_LOG = logging.getLogger(__name__)


def versions_in(path):
    """Returns the versions of a model, a dict from the number to the folder.

    Args:
        path: A model's folder, with a folder of an integer name for each version, or
            the folder of one version; one of another name is version 1.
    """
    path = pathlib.Path(path).absolute()
    if (path / _FILE).is_file():
        return {int(path.name) if path.name.isdecimal() else 1: path}
    if not path.is_dir():
        return {}
    return {
        int(folder.name): folder
        for folder in sorted(path.iterdir())
        if folder.name.isdecimal() and (folder / _FILE).is_file()
    }


def name_of(path):
    """Returns a model's name, that of its folder: of `models/digits/3` it is digits."""
    path = pathlib.Path(path).absolute()
    is_version = (path / _FILE).is_file() and path.name.isdecimal()
    return path.parent.name if is_version else path.name


class Versions:
    """The loaded versions of a model, kept up with its folder.

    Args:
        path: As of `versions_in`.
        load: Function from a version's folder to what serves it.
        only: Versions to serve; empty for the latest ones.
        keep: How many of the latest.
    """

    def __init__(self, path, load, only=(), keep=1):
        self._path, self._load = path, load
        self._only, self._keep = tuple(only), keep
        self._loaded, self._failed = {}, {}

    def refresh(self):
        """Loads new versions, and lets those go that they take the place of.

        A version that cannot be loaded is tried again next time; until then those
        serve that did. So they do when the folder is gone.
        """
        found = versions_in(self._path)
        wanted = [v for v in found if v in self._only] if self._only else sorted(found)
        wanted = wanted if self._only else wanted[-self._keep :]
        failed = {}
        for version in wanted:
            if version not in self._loaded:
                try:
                    # A dict of its own: requests read the other meanwhile.
                    loaded = self._load(found[version])
                    self._loaded = self._loaded | {version: loaded}
                    _LOG.info("Version %d of %s is loaded.", version, self._path)
                except Exception as error:
                    failed[version] = f"{type(error).__name__}: {error}"
                    if self._failed.get(version) != failed[version]:
                        _LOG.exception("Version %d cannot be loaded.", version)
        self._failed = failed
        good = [version for version in wanted if version in self._loaded]
        if good and not failed:
            self._loaded = {version: self._loaded[version] for version in good}

    def get(self, version=None):
        """Returns `(number, what serves it)`: of a version, or of the latest.

        Raises:
            KeyError: If it is not loaded, with the versions that are.
        """
        loaded = self._loaded
        number = max(loaded, default=None) if version is None else version
        if number not in loaded:
            raise KeyError(
                f"Version {number} is not served; these are: {sorted(loaded)}"
                if loaded
                else f"No version of {self._path} is loaded: {self._failed}"
            )
        return number, loaded[number]

    def status(self):
        """Returns a dict from each version to None, or to why it is not loaded."""
        return {**dict.fromkeys(self._loaded), **self._failed}
