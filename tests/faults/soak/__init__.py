"""A site under every fault at once, for as long as one likes, and the audit of what came of it."""
