"""Whatever comes in from outside, in any shape: rsync's and ssh's words, rows, settings, binlog events, names in a log.

``python -m fuzz --inputs 1000000 --seed 7`` tries a million inputs; the first that breaks a promise is shown, with the command that
shows it again, and the exit status is 1.
"""
