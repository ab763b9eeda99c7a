"""Child processes, and the embedded Valkey."""
