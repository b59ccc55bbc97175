"""``python -m tesserec``: the command line."""

from tesserec.cli import main

if __name__ == "__main__":
    main()
