"""`python -m cmcr` is `cmcr`."""

from cmcr.cli.app import main

if __name__ == "__main__":
    main()
