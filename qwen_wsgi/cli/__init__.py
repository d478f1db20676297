"""The `qwen-proxy` command."""
