"""cdc_archiver: archives files that an instrument registers in a database table, as it registers them."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("cdc_archiver")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+source"
