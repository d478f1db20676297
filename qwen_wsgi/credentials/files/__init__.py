"""The files of a login: the CLI's document and our journal, read and written durably."""
