"""Finds the accounts of this machine (API keys and logins), and keeps their credentials usable.

`sources.discovery.Discovery` finds the accounts; each has one `credential.CredentialSource`: a
`StaticKey`, or an `oauth_login.OAuthLogin`. Only the refresh of a login (`refresh`) writes files,
under its locks (`locks`). The only value that leaves is `token.AccessToken`.
"""
