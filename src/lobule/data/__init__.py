"""Images, manifests, audits and splits: everything before a network."""
