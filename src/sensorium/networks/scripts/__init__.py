"""Files that exports write beside their weights, for what a library has no network of its own: copied, never imported here."""
