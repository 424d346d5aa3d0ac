"""Running a network over slices and scans."""
