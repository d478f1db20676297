"""Where credentials come from: API keys and logins, found in the environment and qwen-code's files.

`discovery.Discovery` finds the accounts, `source.CredentialSource` hands out one account's token.
Only the renewal of a login writes, under its locks (`refresher`, `judge`, `both_locks`,
`transaction`, `keeper`, in this order); the only value that leaves is `token.AccessToken`.
"""
