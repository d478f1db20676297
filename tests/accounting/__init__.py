"""Records of calls: prices, sums, and the ledger."""
