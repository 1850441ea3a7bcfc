"""The verb `verify`: compares archived files with their rows."""
