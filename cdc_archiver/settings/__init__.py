"""Every setting once: its name, type, default, unit and description; how it is read and shown."""

from cdc_archiver.settings.definitions import PREFIX, Settings, SourceOptions, SourceSettings
from cdc_archiver.settings.loading import load, parse_duration

__all__ = ["PREFIX", "Settings", "SourceOptions", "SourceSettings", "load", "parse_duration"]
