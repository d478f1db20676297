"""The pages of the console, as far as they are made of values alone. Pure: no Flask, no I/O."""
