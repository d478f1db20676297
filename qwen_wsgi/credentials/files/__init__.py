"""The files of a login: the CLI's document, our journal, and how both are read and written durably."""
