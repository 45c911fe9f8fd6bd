"""What stages leave behind: the store, the index, and how both are read."""
