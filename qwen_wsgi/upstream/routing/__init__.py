"""Which account answers a call: models, accounts, limits, cooldowns, affinity."""
