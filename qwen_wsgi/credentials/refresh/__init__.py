"""Refreshes a login: when, under which locks, and how the new token is made durable.

`refresher` runs one attempt at a time. `policy` decides whether one is due, `lock_pair` takes both
locks, `transaction` spends the refresh token, `commit` writes its successor, `journal_updates`
writes what the journal needs beside that. They share a `context.RefreshContext` and a
`context.RefreshState`.
"""
