"""Features, the head, and the fits that folds are made of."""
