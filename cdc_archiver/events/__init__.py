"""Where wake-ups come from: the binary log and the reconciliation sweep."""
