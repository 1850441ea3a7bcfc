"""What an operator asks for, called by the command line and the HTTP service alike."""
