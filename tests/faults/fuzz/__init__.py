"""Fuzzes input from outside, in any shape: output of rsync and ssh, rows, settings, binlog events, names in a log.

``python -m fuzz --inputs 1000000 --seed 7`` tries a million inputs; it prints the first that breaks a promise, with the command
that repeats it, and exits with status 1.
"""
