"""`python -m medsiam` is the command line."""

from medsiam.cli import main

if __name__ == "__main__":
    main()
