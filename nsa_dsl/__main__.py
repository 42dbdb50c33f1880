"""`python -m nsa_dsl` is `nsa`."""

from nsa_dsl.cli import main

if __name__ == "__main__":
    main()
