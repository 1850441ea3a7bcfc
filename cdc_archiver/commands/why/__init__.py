"""The verb `why`: facts about one file, a diagnosis of them, and how it is printed."""
