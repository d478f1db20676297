"""Model Studio's native API, faked: pictures, tasks, and the files that they make."""
