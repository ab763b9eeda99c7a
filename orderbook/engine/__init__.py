"""The functions of the library, called from Python."""
