"""From ids to work: which file is tried next, by which worker, and when again."""
