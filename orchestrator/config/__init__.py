"""An experiment as one frozen value, and how it is read from a file."""
