"""`/admin/v1`: what an admin's key may do over HTTP."""
