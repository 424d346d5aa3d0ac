"""Files to arrays with their geometry, and back; whose scan a file is."""
