"""The version of this package."""

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """The installed version; of a checkout that is only on the Python path, "unknown"."""
    try:
        return version("torchreg-penalty")
    except PackageNotFoundError:
        return "unknown"
