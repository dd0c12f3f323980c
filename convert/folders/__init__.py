"""What lies in a folder, by names and small files: what a path is, its manifest, side files, locks, staging."""
