"""`python -m handbook_utils.cli`, which the launcher starts in each process."""

from handbook_utils.cli.app import main

if __name__ == "__main__":
    main()
