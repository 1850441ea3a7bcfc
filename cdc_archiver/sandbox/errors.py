"""The one exception of the sandbox."""


class SandboxError(Exception):
    """A private server or a tool that it needs cannot be had; the message says which, why and what to do."""
