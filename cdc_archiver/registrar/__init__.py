"""The registrar: from the instrument's messages to rows of the table of files."""
