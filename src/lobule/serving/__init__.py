"""A saved model behind HTTP, for programs and for people; on this machine unless told otherwise."""
