"""Where credentials come from: API keys and logins, found in the environment and qwen-code's files.

`discovery.Discovery` finds the accounts, `source.CredentialSource` hands out one account's token.
Everything here reads and never writes; the only value that leaves is `token.AccessToken`.
"""
