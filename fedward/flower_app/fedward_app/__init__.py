"""The Flower app bundle; see pyproject.toml beside this folder."""
