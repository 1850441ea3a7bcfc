"""The demo: the real service archives an observing session on private servers, and every file is checked."""
