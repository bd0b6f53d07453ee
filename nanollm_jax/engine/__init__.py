"""Rows that come and go: requests share the rows of one state on the device, whose shapes never change."""
