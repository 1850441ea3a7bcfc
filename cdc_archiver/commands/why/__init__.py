"""The verb `why`: gathers facts about one file, derives a diagnosis, prints both."""
