"""The life of the service: bootstrap, supervisor, pipeline, locks, workers."""
