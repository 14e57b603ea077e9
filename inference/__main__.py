"""``python -m inference``."""

from inference.cli import program

if __name__ == "__main__":
    program()
