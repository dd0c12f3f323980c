"""Folders, by names and small files: what a path is, its manifest, sidecar files, locks, staging."""
