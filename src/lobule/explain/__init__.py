"""Why: where the model looked, whether the map can be believed, and which known cases are alike."""
