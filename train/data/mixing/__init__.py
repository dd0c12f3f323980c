"""Token data as a whole: found, described, joined, and mixed by weights."""
