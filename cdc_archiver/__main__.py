"""`python -m cdc_archiver`: the commands, where their script is not on PATH."""

from cdc_archiver.cli import main

if __name__ == "__main__":
    main()
