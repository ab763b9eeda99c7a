"""The streams of the books, read and followed."""
