"""Files and batches: `/v1/files` and `/v1/batches` over an account's own."""
