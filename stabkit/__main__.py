"""`python -m stabkit`: the same as the `stabkit` command."""

from stabkit.cli import main

if __name__ == "__main__":
    main()
