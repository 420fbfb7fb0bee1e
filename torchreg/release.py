"""The version of this package."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """The version that is installed; of a checkout that is only on the Python path, "unknown"."""
    try:
        return version("torchreg-penalty")
    except PackageNotFoundError:
        return "unknown"
