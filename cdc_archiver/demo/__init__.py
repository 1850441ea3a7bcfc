"""The demo: an observing session on private servers, archived by the real service and proved."""
