"""How clients are set up to use this server: `qwen-proxy clients`."""
