"""`python -m nanobanana_pipeline.cli`."""

from nanobanana_pipeline.cli.main import program

if __name__ == "__main__":
    program()
