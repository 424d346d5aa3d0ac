"""Files to arrays with their geometry, and back; what lies below a folder, and whose it is."""
