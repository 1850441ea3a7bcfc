"""The operator's commands: one module each parses and prints; the work is done in :mod:`cdc_archiver.operations`."""
