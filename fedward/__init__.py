"""The front: the command line, and a whole federation on one machine."""
