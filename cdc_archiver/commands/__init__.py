"""The operator's commands: one module or small package for each verb, with its work and its printing."""
