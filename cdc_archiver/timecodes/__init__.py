"""Timecodes: which are complete, how readers are told, and what came late."""
