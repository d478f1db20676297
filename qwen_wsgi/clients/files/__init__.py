"""Changes to the files of clients: `qwen-proxy clients NAME --write` and `--undo`."""
