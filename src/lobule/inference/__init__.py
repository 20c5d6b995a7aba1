"""A saved model at work on image files."""
