"""`python -m mconv`: the same as the `mconv` command."""

from mconv.cli.app import main

if __name__ == "__main__":
    main()
