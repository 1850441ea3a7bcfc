"""The verb `verify`: archived files are read again and compared with their rows."""
