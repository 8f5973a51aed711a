"""What templates see.  Pure."""
