"""Doors to other people's programs, each an optional extra; nothing here is imported by the rest of the package."""
