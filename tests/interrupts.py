"""Ctrl-C in the middle of a conversion, for the tests of what it leaves."""

import os


def stop_after(monkeypatch, count):
    """Press Ctrl-C at the write of this number; returns a list of all writes."""
    seen, write = [], os.pwrite

    def writing(*args):
        seen.append(args)
        if len(seen) == count:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(os, "pwrite", writing)
    return seen
