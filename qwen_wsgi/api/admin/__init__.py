"""`/admin/v1`: what an admin's key may do over HTTP; and what each client may see of itself."""
