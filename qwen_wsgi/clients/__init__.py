"""What a client has to be told to use this server: `qwen-proxy clients`."""
