"""The verb `timecodes`: what is complete, what holds the others up, and which files are in one."""
