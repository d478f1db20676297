"""Pages for people: the start page, and the description of the API to read."""
