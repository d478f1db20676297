"""The console without HTTP: its pages, the checks of a browser's request, its words."""
