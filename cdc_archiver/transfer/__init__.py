"""From a record to a file in the archive: layout, rsync, proof, placement."""
