"""HTTP in: one blueprint per family of endpoints. Only here, and in app.py, is flask imported."""
