"""Checks of credentials, account and machine before anything costs quota."""
